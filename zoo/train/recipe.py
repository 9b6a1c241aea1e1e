"""A recipe: one TOML file that says everything needed to train one part again from nothing.

Fields common to all parts stand here; each part adds its own tables by subclassing `Recipe` (`[model]`, `[data]` ...).
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class RecipeError(ValueError):
    """A recipe or an override that cannot be used; the message says which key, and what would do."""


class Table(BaseModel):
    """A table of a recipe: immutable, and no key is silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Optimiser(Table):
    """AdamW or Muon, and the learning rate over the run's progress from 0 to 1."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.01, ge=0)  # of matrices and kernels only
    clip: float = Field(1.0, gt=0)  # largest norm of the whole gradient
    warmup: int = Field(500, ge=0)  # steps of linear rise
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final: float = Field(0.02, ge=0, le=1)  # share of `lr` left at the end


class Recipe(Table):
    """What every part's recipe has.

    A run is as long as `steps` or as `minutes` of wall-clock time, exactly one of the two. With `minutes` the learning
    rate decays with the time spent, so that a run on a busy machine still ends fully decayed; such a run cannot be
    repeated bit for bit, and `training.json` beside its weights tells how many steps it took.
    """

    part: str
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)  # parts that a process computes its batch in, which takes less memory
    recompute: bool = False  # activations, in the backward pass, in place of keeping them: see `zoo.train.recompute`
    seed: int = Field(0, ge=0)
    optimiser: Optimiser = Optimiser()
    ema: float = Field(0.999, ge=0, lt=1)  # decay of the averaged weights, reached from below: min(ema, (1+s)/(10+s))
    autocast: Literal["auto", "bf16", "no"] = (
        "auto"  # bf16 where the device multiplies it faster than float32, or always, or never
    )
    channels_last: bool | None = None  # unset: on a GPU only (GroupNorm's backward crawls in it on a CPU)
    compile: bool = False
    threads: int = Field(0, ge=0)  # CPU threads; 0 leaves it to torch
    log_every: int = Field(50, ge=1)  # steps
    sample_every: int = Field(1000, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    init: Path | None = None  # a folder that a run of this part exported, to start from instead of random weights
    fresh: tuple[str, ...] = ()  # wildcards on names of weights that start random all the same
    out: Path | None = None  # default runs/<part>

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("say how long to train: exactly one of steps = ... and minutes = ...")
        if self.recompute and self.compile:
            raise ValueError("recompute = true and compile = true do not go together: leave one out")
        if self.fresh and self.init is None:
            raise ValueError("fresh names weights that init shall not set, and there is no init")
        return self

    @property
    def folder(self) -> Path:
        """Where the run writes its checkpoints, logs, samples and final weights."""
        return self.out if self.out is not None else Path("runs") / self.part


RecipeT = TypeVar("RecipeT", bound=Recipe)
TableT = TypeVar("TableT", bound=Table)
Tree = dict[str, object]


def read_toml(path: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """The TOML file as a dictionary, with `dotted.key=value` overrides applied.

    An override of `steps` removes the file's `minutes` and the other way round: they are two ways to say one thing.

    Raises:
        RecipeError: there is no such file, it is not TOML, or an override is not key=value.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise RecipeError(f"no recipe at {path}" + (f"; there are: {', '.join(near)}" if near else ""))
    try:
        tree: Tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"override {override!r} should read key=value, for example optimiser.lr=1e-3")
        _assign(tree, key.split("."), _value(text))
        if key in ("steps", "minutes"):
            tree.pop("minutes" if key == "steps" else "steps", None)
    return tree


def validate(kind: type[TableT], tree: Tree) -> TableT:
    """The checked recipe.

    Raises:
        RecipeError: listing every wrong key with the nearest right ones, and every value of a wrong type or range.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, e["type"], e["loc"], e["msg"], e["input"]) for e in error.errors()]
        raise RecipeError("the recipe cannot be used:\n  " + "\n  ".join(lines)) from None


def nearest(name: str, names: Sequence[str]) -> str:
    """'did you mean a, b?' or, where nothing is near, all the names there are."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {', '.join(near)}?" if near else f"there are: {', '.join(names)}"


def _value(text: str) -> object:
    """An override's value, read as TOML where it is TOML and as a plain string where it is not."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(tree: Tree, path: Sequence[str], value: object) -> None:
    *parents, last = path
    for name in parents:
        child = tree.setdefault(name, {})
        if not isinstance(child, dict):
            raise RecipeError(f"override {'.'.join(path)}: {name} is a value, not a table")
        tree = child
    tree[last] = value


def _explain(kind: type, what: str, where: tuple[int | str, ...], message: str, given: object) -> str:
    key = ".".join(str(part) for part in where)
    if what in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key}: {nearest(str(where[-1]), _names_at(kind, where[:-1]))}"
    if what == "missing":
        return f"{key} is missing"
    message = message.removeprefix("Value error, ")
    return f"{key} = {given!r}: {message}" if key else message


def _names_at(kind: object, where: Sequence[int | str]) -> list[str]:
    """The keys that the table at `where` may have."""
    for part in where:
        fields = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
        field = fields.get(part)
        kind = getattr(field, "annotation", None) or getattr(field, "type", None)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return list(kind.model_fields)
    return [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
