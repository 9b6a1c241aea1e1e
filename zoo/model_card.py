"""The model card, rendered from the config: what the model is, how to use it, how it was made and what it scores."""

from __future__ import annotations

from pydantic import JsonValue

from zoo.config import ModelConfig


def render(config: ModelConfig) -> str:
    """The card in Markdown, with the header that model hubs read."""
    height, width = config.resolution
    example = config.examples[0] if config.examples else "a prompt"
    header = [
        "---",
        f"license: {config.licence.lower()}",
        *(["language:", *(f"- {code}" for code in config.languages)] if config.languages else []),
        "pipeline_tag: text-to-image",
        "library_name: zoo",
        "---",
    ]
    settings = {k: v for k, v in config.defaults.model_dump().items() if v is not None}
    sections = [
        "\n".join(header),
        f"# {config.name}",
        config.summary,
        f"```python\nimport zoo\n\npipe = zoo.load({config.name!r})\npipe({example!r}).save('outputs')\n```",
        "| | |\n|---|---|\n"
        + "\n".join(
            f"| {label} | {value} |"
            for label, value in (
                ("family", config.family),
                ("resolution", f"{height} x {width}"),
                ("languages", ", ".join(config.languages)),
                ("licence", config.licence),
                ("papers", ", ".join(map(_paper, config.papers))),
                ("trained by", ", ".join(f"`zoo train {recipe}`" for recipe in config.recipes)),
                ("text encoder", config.text_encoder.kind),
                ("generator", config.generator.kind),
                ("decoder", config.decoder.kind),
                ("sampled with", ", ".join(f"{k} {v}" for k, v in settings.items())),
                *((f"{role} variants", ", ".join(parts)) for role, parts in config.variants.items()),
            )
            if value
        ),
        "## Results\n\n" + _table(config.results) if config.results else "",
        "## Prompts to try\n\n" + "\n".join(f"- {prompt}" for prompt in config.examples) if config.examples else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv:").strip()
    return f"[arXiv {number}](https://arxiv.org/abs/{number})" if paper.startswith("arXiv:") else paper


def _table(results: dict[str, JsonValue]) -> str:
    rows = [f"| {name} | {value} |" for name, value in _flat(results)]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


def _flat(value: JsonValue, prefix: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        joined = ((f"{prefix}, {key}" if prefix else key, inner) for key, inner in value.items())
        return [row for name, inner in joined for row in _flat(inner, name)]
    if isinstance(value, float):
        return [(prefix, f"{value:.3g}")]
    return [(prefix, str(value))]
