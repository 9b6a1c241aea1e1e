"""The README's table of all shipped models, from what their configs hold; `make results` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.config import ModelConfig, PartConfig
from zoo.data.captions import LANGUAGES
from zoo.markdown import table, with_interval
from zoo.model_card import SPLITS
from zoo.train import marked

PAGE = Path("README.md")
MARKS = ("<!-- scores: written by `make results` -->\n", "<!-- end of scores -->")
COLUMNS = [(split, language) for split in SPLITS for language in LANGUAGES]


def compared(models: Sequence[ModelConfig]) -> str:
    """A row a model, those that obey best first: overall scores, that of pictures cleanly drawn too, steps of every
    stage, seconds a picture, parameters of all parts."""
    titles = [f"{SPLITS[split]}, {language}" for split, language in COLUMNS]
    head = ("", *titles, "cleanly drawn (seen, en)", "steps", "seconds a picture", "M parameters")
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

    def share(score: str, part: str, said: str) -> str:
        cells = (held.get(score, {}).get(part, {}).get(said) for held in (evaluated, evaluated.get("intervals", {})))
        return with_interval(*cells)

    parameters = results.get("parameters")
    return (
        f"[{model.name}](weights/{model.name}/README.md)",
        *(share("overall", part, said) for part, said in COLUMNS),
        share("clean", "seen", "en"),
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
