"""The documentation holds: its Python runs, its commands parse, its links lead somewhere, its site is whole."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.main import get_command

from zoo import cli

ROOT = Path(__file__).parent.parent
SETS = ("*.md", "docs/*.md", "recipes/*.md", "weights/*/README.md", "examples/**/*.md")
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for pattern in SETS for path in ROOT.glob(pattern))
UsageError = typer.BadParameter.__base__ or Exception  # of the click that typer brings along
GUIDES = [name for name in DOCUMENTS if name.startswith("docs/")]

FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)```", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^(?: {4})?((?:zoo|python -m zoo)[ .].*)$", re.MULTILINE)
INLINE = re.compile(r"`(python -m zoo\.[^`\n]*)`")
HISTORY = "CHANGELOG.md"  # names commands without what they are to act on

SOON, LATE = 60, 1800  # seconds that a check, and a guide's own commands, may take on a slow machine


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of code, `run` is off where the guide says that it cannot be."""

    kind: str
    code: str
    line: int
    run: bool


def blocks(name: str) -> list[Block]:
    text = (ROOT / name).read_text("utf-8")
    found = FENCE.finditer(text)
    return [Block(b["kind"], b["code"], text.count("\n", 0, b.start("code")) + 1, b["why"] is None) for b in found]


def execute(name: str, block: Block, session: dict[str, object]) -> None:
    """Run a block as if it stood in a file of its own, with the line numbers of the document."""
    if block.kind == "python":
        exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), session)
    elif block.kind == "bash":
        subprocess.run(["bash", "-euc", block.code], check=True, capture_output=True, timeout=LATE)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where the command `zoo` is this environment's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("line", [block.line for block in blocks("README.md") if block.kind == "python"])
def test_each_block_of_the_readme_runs_alone(line: int, desk: Path) -> None:
    (block,) = [block for block in blocks("README.md") if block.line == line]
    execute("README.md", block, {})
    if "result.save" in block.code:
        assert list((desk / "outputs").glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in GUIDES if any(b.kind == "python" and b.run for b in blocks(name))])
def test_a_guide_runs_as_one_session(name: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session: dict[str, object] = {}
    for block in blocks(name):
        if block.run:
            execute(name, block, session)
    if name == "docs/adaptation.md":
        assert "{'mine': 0.8, 'theirs': None}" in capsys.readouterr().out
        assert list((desk / "outputs").glob("*.png"))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_all_code_is_well_formed(name: str) -> None:
    for block in blocks(name):
        assert block.kind in ("python", "bash", "sh", "bibtex", ""), f"{name}:{block.line}: {block.kind}"
        if block.kind == "python":
            compile(block.code, f"{name}:{block.line}", "exec")
        elif block.kind in ("bash", "sh"):
            checked = subprocess.run(["bash", "-n"], input=block.code, text=True, capture_output=True, timeout=SOON)
            assert not checked.returncode, f"{name}:{block.line}: {checked.stderr}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_parse_and_name_what_is_there(name: str) -> None:
    for line in commands(name):
        words = shlex.split(line, comments=True)
        if words[0] == "python":
            parse_module(words[2:])
        elif not {"[", "MODEL", "..."} & set(words):
            parse(words[1:])
        for recipe in (word for word in words if word.startswith("recipes/") and "<" not in word):
            assert (ROOT / recipe).is_file(), f"{name}: {line}"


def commands(name: str) -> list[str]:
    """The command lines of a document: lines of their own, and those of modules between backticks too."""
    text = (ROOT / name).read_text("utf-8")
    return [*COMMAND.findall(text), *(INLINE.findall(text) if name != HISTORY else [])]


def parse_module(words: list[str]) -> None:
    """Read a command line as `python -m` and one of the zoo's modules do, without acting on it.

    Raises:
        ModuleNotFoundError: there is no such module.
        SystemExit: there is no such option, or a value is missing or of a wrong kind.
    """
    name, *arguments = words
    importlib.import_module(name).parser().parse_args(arguments)


def parse(arguments: list[str]) -> None:
    """Read a command line as `zoo` does, without acting on it.

    Raises:
        UsageError: there is no such command or option, or a value is missing or of a wrong type.
    """
    group: Any = get_command(cli.app)
    context = group.make_context("zoo", list(arguments))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    assert command is not None
    command.make_context(name, rest, parent=context)


def test_a_command_that_is_not_there_is_noticed() -> None:
    with pytest.raises(UsageError, match="No such option"):
        parse(["generate", "a red star", "--no-such-option", "3"])
    with pytest.raises(UsageError, match="No such command"):
        parse(["no-such-command"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zoo.train.ship recipes/vae.toml --no-such-option", "unrecognized arguments: --no-such-option"),
        ("zoo.train.ship recipes/vae.toml --measure beauty", "invalid choice: 'beauty'"),
        ("zoo.data.subjects p7", "the following arguments are required: folder"),
        ("zoo.evaluate.eye", "the following arguments are required: FOLDER"),
    ],
)
def test_a_line_that_its_module_cannot_read_is_noticed(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_module(line.split())
    assert message in capsys.readouterr().err


def test_a_module_that_is_not_there_is_noticed() -> None:
    with pytest.raises(ModuleNotFoundError):
        parse_module(["zoo.no_such_module"])


def test_command_lines_are_found_wherever_they_stand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "    zoo list\n\n```bash\npython -m zoo.a b\n```\nThen `python -m zoo.c d`, `zoo list` not.\n", "utf-8"
    )
    assert commands(str(page)) == ["zoo list", "python -m zoo.a b", "python -m zoo.c d"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for target in LINK.findall(prose(name)):
        path, _, anchor = target.partition("#")
        if ":" in path:  # elsewhere
            continue
        place = (ROOT / name).parent / path if path else ROOT / name
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert not broken


def prose(name: str) -> str:
    """A document without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", (ROOT / name).read_text("utf-8")))


def anchors(path: Path) -> set[str]:
    """What the headings of a document are called in links."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_is_whole(pages: ModuleType, tmp_path: Path) -> None:
    """Every guide, script, card and module has a page, and each is in the navigation, once."""
    pages.main(tmp_path)
    settings = tomllib.loads((tmp_path / "zensical.toml").read_text("utf-8"))
    listed = list(leaves(settings["project"]["nav"]))
    there = {str(path.relative_to(tmp_path / "pages")) for path in (tmp_path / "pages").rglob("*.md")}
    assert sorted(listed) == sorted(there)
    assert set(GUIDES) <= there
    for page in (tmp_path / "pages").rglob("*.md"):
        for shown in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (page.parent / shown).is_file(), f"{page} shows {shown}"
    assert {f"examples/tour/{script.stem}.md" for script in (ROOT / "examples" / "tour").glob("*.py")} <= there
    told = [(tmp_path / "pages" / name).read_text("utf-8") for name in there if name.startswith("reference/")]
    modules = {text.removeprefix("::: ").strip() for text in told if text.startswith("::: ")}
    files = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "zoo").rglob("*.py")]
    assert modules == {".".join(parts).removesuffix(".__init__") for parts in files if parts[-1] != "__main__"}


def leaves(value: object) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for one in value for leaf in leaves(one)] if isinstance(value, list) else [str(value)]


def test_a_docstring_that_tells_of_what_is_not_there_is_noticed(
    pages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo.py").write_text('def f(x: int) -> int:\n    """F.\n\n    Args:\n        y: a number.\n    """\n')
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    faults = pages.check()
    assert any("'y' does not appear in the function signature" in fault for fault in faults)


def test_the_readme_names_all_that_can_be_drawn() -> None:
    from zoo.data import captions, scenes

    said = (ROOT / "README.md").read_text("utf-8")
    words = [
        *(f"{thing} {zh}" for thing, (zh, _) in captions.ZH_OBJECT.items()),
        *(
            f"{en} {zh}"
            for table in (captions.ZH_COLOUR, captions.ZH_SIZE, captions.ZH_STYLE)
            for en, zh in table.items()
        ),
        *(f"{side} {names[0]}" for side, names in captions.ZH_SIDES.items()),
        *(f"{captions.EN_COUNT[count]} {zh}" for count, zh in captions.ZH_COUNT.items()),
        *(f"{ground} {captions.ZH_BACKGROUND[ground]}" for ground in scenes.BACKGROUNDS if ground != "night"),
    ]
    assert not [word for word in words if word not in said]
