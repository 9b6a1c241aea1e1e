"""`import zoo` is instant, and every module can be imported."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import zoo

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "diffusers", "numpy", "PIL", "pydantic", "typer", "tqdm", "huggingface_hub")


def imported(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    script = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_zoo_imports_nothing_heavy() -> None:
    assert imported("import zoo; zoo.list_models()").isdisjoint(HEAVY)


def test_families_are_lazy() -> None:
    assert imported("import zoo.imagen, zoo.dalle2, zoo.gan").isdisjoint(HEAVY)
    for name in ("zoo.imagen", "zoo.dalle2", "zoo.gan"):
        family = import_module(name)
        for export in family.__all__:
            assert getattr(family, export).__doc__, f"{name}.{export} has no docstring"
            assert export in dir(family)


def test_face() -> None:
    for name in zoo.__all__:
        assert getattr(zoo, name).__doc__, f"zoo.{name} has no docstring"
        assert name in dir(zoo)


def test_every_module_imports() -> None:
    for module in pkgutil.walk_packages(zoo.__path__, "zoo."):
        if not module.name.endswith("__main__") and "_weights" not in module.name:
            assert import_module(module.name).__doc__, f"{module.name} has no docstring"


def test_contributing_lists_the_rooms_that_are_checked() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("lint-imports` checks")[1].split("\n\n")[1]
    (layers,) = (
        contract["layers"]
        for contract in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    rooms = [[re.findall(r"\w+", line) for line in lines] for lines in (told.splitlines(), layers)]
    assert rooms[0] == rooms[1]
