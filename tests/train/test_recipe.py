from __future__ import annotations

from pathlib import Path

import pytest

from zoo.train import PARTS, RecipeError, run, task_type
from zoo.train.recipe import Recipe, Table, read_toml, validate


class Nested(Table):
    width: int = 8
    kind: str = "a"


class Example(Recipe):
    model: Nested = Nested()


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "example.toml"
    path.write_text('part = "vae"\nsteps = 10\n[model]\nwidth = 4\n[optimiser]\nlr = 1e-4\n', encoding="utf-8")
    return path


def read(path: Path, *overrides: str) -> Example:
    return validate(Example, read_toml(path, overrides))


def test_file_overrides_and_defaults(toml: Path) -> None:
    recipe = read(toml, "optimiser.betas=[0.8, 0.9]", "model.kind=b c", "seed=3", "compile=true", "out=there/x")
    assert (recipe.model, recipe.optimiser.lr) == (Nested(width=4, kind="b c"), 1e-4)
    assert (recipe.optimiser.betas, recipe.seed, recipe.compile) == ((0.8, 0.9), 3, True)
    assert recipe.folder == Path("there/x")
    assert read(toml).folder == Path("runs/vae")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.widht=3", r"unknown key model\.widht: did you mean width\?"),
        ("optimizer.lr=1", "unknown key optimizer: did you mean optimiser"),
        ("optimiser.zzz=1", r"unknown key optimiser\.zzz: there are: kind, lr, betas"),
        ("batch=many", r"batch = 'many': .*integer"),
        ("batch=0", r"batch = 0: .*greater than or equal to 1"),
        ("optimiser.lr=-1", r"optimiser\.lr = -1: .*greater than 0"),
        ("autocast=fp8", r"autocast = 'fp8': .*'auto', 'bf16' or 'no'"),
        ("model=3", "model = 3"),
        ("batch", "'batch' should read key=value"),
        ("part.x=1", "part is a value, not a table"),
    ],
)
def test_wrong_overrides_are_explained(toml: Path, override: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        read(toml, override)


def test_all_faults_are_listed_at_once(toml: Path) -> None:
    with pytest.raises(RecipeError) as error:
        read(toml, "batch=0", "model.widht=3")
    assert "batch" in str(error.value)
    assert "model.widht" in str(error.value)


def test_length_is_steps_or_minutes(toml: Path) -> None:
    assert (read(toml, "minutes=2").minutes, read(toml, "minutes=2").steps) == (2, None)
    toml.write_text('part = "vae"\nsteps = 10\nminutes = 3\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="exactly one of steps"):
        read(toml)
    toml.write_text('part = "vae"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match="exactly one of steps"):
        read(toml)


def test_missing_or_broken_files(toml: Path) -> None:
    with pytest.raises(RecipeError, match=r"not how one is trained: python -m zoo\.train\.ship .*imagen-small\.toml"):
        run(Path(__file__).parents[2] / "recipes" / "imagen-small.toml")
    with pytest.raises(RecipeError, match=r"no recipe at .*; there are: .*example\.toml"):
        read_toml(toml.with_name("exmaple.toml"))
    toml.write_text("part = ", encoding="utf-8")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_toml(toml)


def test_unknown_parts(toml: Path) -> None:
    with pytest.raises(RecipeError, match="no part 'vea': did you mean vae"):
        run(toml, ["part=vea"])
    with pytest.raises(RecipeError, match="which part"):
        task_type(None)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_has_a_valid_recipe(part: str) -> None:
    """Under its own name or, where there are several ways to train it, under the names of their output folders."""
    files = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
    trees = {file.stem: tree for file in files if (tree := read_toml(file)).get("part") == part}
    assert trees
    for name, tree in trees.items():
        recipe = validate(task_type(part).recipe_type, tree)
        assert recipe.folder in (Path("runs") / part, Path("runs") / name)
