"""Lays out what the site is built from: files of the repository as they stand, and pages made from code.

    python docs/pages.py build/docs && zensical build --strict --config-file build/docs/zensical.toml

Pages stand on the site where their files stand in the repository, so that a link works in both. Made are the tour (from
its scripts), the results (from their tables) and the reference (a page for every module, by rooms): whatever is added
to these is on the site without further ado. A docstring that contradicts its function ends the build.
"""

from __future__ import annotations

import ast
import csv
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
GUIDES = {
    "How the parts fit": "docs/concepts.md",
    "Adapting a model": "docs/adaptation.md",
    "Published checkpoints": "docs/checkpoints.md",
    "The page": "docs/app.md",
    "Which text encoder": "docs/text-encoders.md",
    "Diffusion against GAN": "docs/diffusion-against-gan.md",
    "Recipes": "recipes/README.md",
    "What was tried": "docs/training.md",
}
CARDS = "weights/*/README.md"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "recipes/README.md",
    "examples/tour/README.md",
    CARDS,
)
BESIDE = (
    "weights/*/*.webp",
    "docs/*.png",
    "docs/images/*.png",
    "docs/images/*.webp",
    "docs/*.gif",
    "docs/*.jpg",
    "recipes/*.toml",
    "examples/tour/*.py",
    "LICENSE",
)
SCRIPTS = "examples/tour/*.py"
LINK = re.compile(r"(?<=\]\()[^)#:\s]+(?=[)#])")


def main(target: Path) -> None:
    """Write the pages below `target` / pages, and the settings with the navigation beside them."""
    if faults := check():
        sys.exit("docstrings that cannot be read or tell of what is not there:\n" + "\n".join(faults))
    shutil.rmtree(target, ignore_errors=True)
    for pattern in (*PAGES, *BESIDE):
        for source in _found(pattern):
            place = target / "pages" / _name(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".md":
                place.write_text(_turned(source), "utf-8")
            else:
                shutil.copyfile(source, place)
    for name, text in _made():
        place = target / "pages" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
    settings = (ROOT / "docs" / "zensical.toml").read_text("utf-8")
    (target / "zensical.toml").write_text(settings.replace("nav = []", f"nav = {_toml(_navigation())}", 1), "utf-8")


def check() -> list[str]:
    """What griffe, which reads the docstrings for the reference, finds wrong with them; zensical only mentions it."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("griffe")
    logger.addHandler(handler)
    try:
        waiting: list[griffe.Object] = [
            griffe.load("zoo", search_paths=[ROOT], try_relative_path=False, docstring_parser="google")
        ]
        while waiting:
            one = waiting.pop()
            if one.docstring is not None:
                _ = one.docstring.parsed
            waiting += [member for member in one.members.values() if isinstance(member, griffe.Object)]
    finally:
        logger.removeHandler(handler)
    return found


def _navigation() -> list[object]:
    tour: list[object] = ["examples/tour/README.md"]
    tour += [{_paragraphs(script)[0].rstrip(".:"): _page(script)} for script in _found(SCRIPTS)]
    models: list[object] = [{card.parent.name: _name(card)} for card in _found(CARDS)]
    rooms: list[object] = ["reference/index.md"]
    for room, modules in _rooms().items():
        pages = [{module.rpartition(".")[2]: _place(module, room)} for module in modules]
        rooms.append({room: [f"reference/{room}/index.md", *pages]})
    return [
        {"Home": "README.md"},
        {"Guides": [{title: name} for title, name in GUIDES.items()]},
        {"Tour": tour},
        {"Models": [*models, {"Results": "results/README.md"}]},
        {"Reference": rooms},
        {"Contributing": ["CONTRIBUTING.md", {"Changes": "CHANGELOG.md"}]},
    ]


def _made() -> Iterator[tuple[str, str]]:
    for script in _found(SCRIPTS):
        title, *story = (ast.get_docstring(ast.parse(script.read_text("utf-8"))) or "").split("\n")
        code = script.read_text("utf-8").split('"""', 2)[2].strip()
        yield _page(script), "\n".join([f"# {title.rstrip('.:')}", *story, "", "```python", code, "```", ""])
    yield "results/README.md", "# Results\n\n" + "\n\n".join(_table(path) for path in _found("results/*.csv")) + "\n"
    rooms = _rooms()
    listed = [f"- [{room}]({room}/index.md): {_told(room)}" for room in rooms]
    yield "reference/index.md", "# Reference\n\nBy the rooms of the code.\n\n" + "\n".join(listed) + "\n"
    for room, modules in rooms.items():
        listed = [
            f"- [`{module}`]({Path(_place(module, room)).name}): {_paragraphs(_file(module))[0]}" for module in modules
        ]
        yield f"reference/{room}/index.md", f"# {room}\n\n{_told(room)}\n\n" + "\n".join(listed) + "\n"
        for module in modules:
            yield _place(module, room), f"::: {module}\n"


def _rooms() -> dict[str, list[str]]:
    """The modules of every room: of the package itself, and of each package in it."""
    rooms: dict[str, list[str]] = {"zoo": []}
    for path in _found("zoo/**/*.py"):
        inside = path.relative_to(ROOT / "zoo").with_suffix("").parts
        if path.stem != "__main__":
            module = ".".join(("zoo", *inside)).removesuffix(".__init__")
            rooms.setdefault(inside[0] if len(inside) > 1 else "zoo", []).append(module)
    return rooms


def _turned(source: Path) -> str:
    """A page whose links to folders name their README, which a repository's browser shows by itself."""

    def turned(link: re.Match[str]) -> str:
        folder = (source.parent / link[0]).is_dir()
        return f"{link[0].rstrip('/')}/README.md" if folder else link[0]

    return LINK.sub(turned, source.read_text("utf-8"))


def _table(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    lines = [head, ["---"] * len(head), *rows]
    return f"## {path.stem}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _told(room: str) -> str:
    return _paragraphs(_file("zoo" if room == "zoo" else f"zoo.{room}"))[0]


def _paragraphs(path: Path) -> list[str]:
    """Those of a file's docstring."""
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return [" ".join(paragraph.split()) for paragraph in said.split("\n\n")]


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _found(pattern: str) -> list[Path]:
    return sorted(path for path in ROOT.glob(pattern) if path.is_file())


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _page(script: Path) -> str:
    return _name(script.with_suffix(".md"))


def _place(module: str, room: str) -> str:
    """The page of a module; that of a package beside its modules, for `index` is the room's."""
    name = module.rpartition(".")[2]
    return f"reference/{room}/{'package' if module in ('zoo', f'zoo.{room}') else name}.md"


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML string


if __name__ == "__main__":
    main(Path(sys.argv[1]))
