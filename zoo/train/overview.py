"""The README's table of all shipped models, from what their configs hold; `make results` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.config import ModelConfig, PartConfig
from zoo.markdown import table
from zoo.shares import HEAD, cells
from zoo.train import marked

PAGE = Path("README.md")
MARKS = ("<!-- scores: written by `make results` -->\n", "<!-- end of scores -->")


def compared(models: Sequence[ModelConfig]) -> str:
    """A row a model, those that obey best first: overall scores, that of pictures cleanly drawn too, steps of every
    stage, seconds a picture, parameters of all parts."""
    head = ("", *HEAD, f"cleanly drawn ({HEAD[0]})", "steps", "seconds a picture", "M parameters")
    return table(head, [_row(model) for model in sorted(models, key=_seen, reverse=True)])


def write(root: Path, models: Sequence[ModelConfig]) -> None:
    """Write the README's table in a checkout anew."""
    marked.fill(root / PAGE, *MARKS, compared(models))


def stale(root: Path, models: Sequence[ModelConfig]) -> bool:
    """Whether the README of a checkout says other than the configs do."""
    return marked.stale(root / PAGE, *MARKS, compared(models))


def _seen(model: ModelConfig) -> float:
    evaluated: Any = model.results.get("evaluation", {})
    return float(evaluated.get("overall", {}).get("seen", {}).get("en", 0))


def _row(model: ModelConfig) -> tuple[object, ...]:
    results: Any = model.results
    evaluated = results.get("evaluation", {})
    overall, clean = (
        cells(evaluated.get(score, {}), evaluated.get("intervals", {}).get(score, {})) for score in ("overall", "clean")
    )
    parameters = results.get("parameters")
    return (
        f"[{model.name}](weights/{model.name}/README.md)",
        *overall,
        clean[0],
        " + ".join(map(str, [model.defaults.steps, *_steps(model.decoder)])),
        results.get("seconds_per_image"),
        None if parameters is None else round(sum(parameters.values()) / 1e6, 1),
    )


def _steps(part: PartConfig | None) -> list[int]:
    """The steps of each stage in which a decoder samples, in their order: none of one that does not."""
    if part is None:
        return []
    arguments: Any = part.arguments
    own = [arguments["decoder"]] if "decoder" in arguments else []
    after = arguments.get("upsamplers", arguments).get("stages", ())
    return [stage["sampling"]["steps"] for stage in (*own, *after)] + _steps(part.upsamplers)
