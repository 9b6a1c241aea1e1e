"""The model card, rendered from the config: what the model is, how to use it, how it was made and what it scores."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zoo import readers_card, unclip_card
from zoo.config import ModelConfig
from zoo.markdown import table, with_interval
from zoo.shares import HEAD, SPLITS, cells


def render(config: ModelConfig) -> str:
    """The card in Markdown, with the header that model hubs read."""
    example = config.examples[0] if config.examples else "a prompt"
    sections = [
        _header(config),
        f"# {config.name}",
        config.summary,
        "![Four pictures of each prompt below, seeds 0 to 3](samples.webp)" if config.results else "",
        f'```python\nimport zoo\n\npipe = zoo.load("{config.name}")\npipe({_quoted(example)}).save("outputs")\n```',
        table(("", ""), _facts(config)),
        _adapters(config),
        *(f"## {title}\n\n{text}" for title, text in config.notes.items()),
        _training(config),
        _results(config),
        "## Prompts to try\n\n" + "\n".join(f"- {prompt}" for prompt in config.examples) if config.examples else "",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _adapters(config: ModelConfig) -> str:
    if not config.adapters:
        return ""
    name, first = next(iter(config.adapters.items()))
    asked = [_quoted(first.prompt), f'adapters={{"{name}": 1.0}}']
    asked += [f"{key}={value!r}".replace("'", '"') for key, value in first.settings.items()]
    said = "".join(f"\n    {one}," for one in asked) + "\n" if first.settings else ", ".join(asked)
    lines = [f'pipe.load_adapter("{name}")', f'pipe({said}).save("outputs")']
    rows = [(f"`{name}`", one.summary, one.prompt) for name, one in config.adapters.items()]
    use = "\n".join(("```python", *lines, "```"))
    return f"## Adapters\n\n{use}\n\n" + table(("name", "", "a prompt for it"), rows)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _header(config: ModelConfig) -> str:
    languages = ["language:", *(f"- {code}" for code in config.languages)] if config.languages else []
    kind = ["pipeline_tag: text-to-image", "library_name: zoo"]
    return "\n".join(["---", f"license: {config.licence.lower()}", *languages, *kind, *_index(config), "---"])


def _index(config: ModelConfig) -> list[str]:
    """The overall scores as model hubs read them: the model-index of the header."""
    evaluated: Any = config.results.get("evaluation")
    if not evaluated:
        return []
    lines = ["model-index:", f"- name: {config.name}", "  results:"]
    for split, shares in evaluated["overall"].items():
        for language, share in shares.items():
            if share is not None:
                lines += [
                    *("  - task:", "      type: text-to-image", "    dataset:", "      type: zoo-scenes"),
                    f"      name: scenes, {SPLITS[split]}, {language}",
                    *("    metrics:", "    - type: accuracy", "      name: pictures that are what the prompt says"),
                    f"      value: {share}",
                ]
    return lines


def _facts(config: ModelConfig) -> list[tuple[str, str]]:
    height, width = config.resolution
    settings = {name: value for name, value in config.defaults.model_dump().items() if value is not None}
    counts: Any = config.results.get("parameters", {})

    def part(role: str, kind: str) -> str:
        count = counts.get(role)
        return f"{kind}, {count / 1e6:.2f}M parameters" if count else kind

    facts = [
        ("family", config.family),
        ("resolution", f"{height} x {width}"),
        ("languages", ", ".join(config.languages)),
        ("licence", config.licence),
        ("papers", ", ".join(map(_paper, config.papers))),
        ("text encoder", part("text encoder", config.text_encoder.kind)),
        ("generator", part("generator", config.generator.kind)),
        ("decoder", part("decoder", config.decoder.kind)),
        ("image encoder", config.image_encoder.kind if config.image_encoder else ""),
        ("sampled with", ", ".join(f"{name} {value}" for name, value in settings.items())),
        *((f"{role} variants", ", ".join(parts)) for role, parts in config.variants.items()),
    ]
    return [(label, value) for label, value in facts if value]


def _paper(paper: str) -> str:
    number = paper.removeprefix("arXiv:").strip()
    return f"[arXiv {number}](https://arxiv.org/abs/{number})" if paper.startswith("arXiv:") else paper


def _training(config: ModelConfig) -> str:
    if not config.recipes:
        return ""
    commands = "\n".join(_commands(config))
    parts: Any = config.training
    rows = [(name, run["step"], run["images"], f"{run['minutes']:.0f}") for name, run in parts.items()]
    runs = "\n\n" + table(("part", "steps", "images seen", "minutes"), rows) if rows else ""
    return f"## Training\n\nAgain from nothing:\n\n```sh\n{commands}\n```{runs}"


def _commands(config: ModelConfig) -> list[str]:
    """What trains a model from nothing. One that is another with an adapter folded in needs that one first."""
    folded, base = config.generator.lora, config.generator.shared
    if folded is None:
        return [f"zoo train {recipe}" for recipe in config.recipes]
    *first, last = config.recipes
    ship, adapter = "python -m zoo.train.ship recipes/{}.toml --out mine", Path(folded).parent.name
    return [
        *(f"zoo train {recipe}" for recipe in first),
        ship.format(base),
        f"zoo train {last} teacher=mine/{base}",
        f"{ship.format(base)} --keep --adapters {adapter}",
        ship.format(config.name),
    ]


def scores(config: ModelConfig) -> str:
    """The table of a model's scores by task, split and language; empty where it was not evaluated."""
    evaluated: Any = config.results.get("evaluation")
    if not evaluated:
        return ""
    intervals = evaluated.get("intervals", {"overall": {}, "tasks": {}})  # which older evaluations lack
    rows = [
        ("**overall**", evaluated["overall"], intervals["overall"]),
        *([("overall, cleanly drawn too", evaluated["clean"], intervals["clean"])] if "clean" in evaluated else ()),
        *((task, cell, intervals["tasks"].get(task, {})) for task, cell in evaluated["tasks"].items()),
    ]
    return table(("task", *HEAD), [(name, *cells(shares, interval)) for name, shares, interval in rows])


def _results(config: ModelConfig) -> str:
    results: Any = config.results
    if not results:
        return ""
    sections = ["## Results"]
    if evaluated := results.get("evaluation"):
        sections.append(
            "The share of pictures in which the checker finds everything that the prompt says, one picture a prompt, "
            f"{evaluated['images']} in all. Overall is the mean of the six tasks without style. *Held out*: colours "
            f"and objects, or pairs of objects, that training never showed together ({evaluated['heldout']} half)."
            + (" In brackets: the 95 % interval." if "intervals" in evaluated else "")
        )
        sections.append(scores(config))
        sections += [_checker(evaluated["checker"])] if evaluated.get("checker") else []
    if "editing" in results:
        sections.append(_editing(results["editing"]))
    if "maps" in results:
        sections.append(_maps(results["maps"]))
    if "enlarging" in results:
        sections.append(_enlarging(results["enlarging"]))
    sections += unclip_card.sections(results)
    if "readers" in results:
        sections.append(readers_card.section(results["readers"]))
    if "distances" in results:
        sections.append(_distances(results["distances"]))
    if "rerank" in results:
        sections.append(_rerank(results["rerank"]))
    measures = [
        ("reconstruction by the VAE on fresh scenes, PSNR in dB", results.get("psnr")),
        ("seconds a picture, warm, on the machine that measured", results.get("seconds_per_image")),
    ]
    for kind in ("text", "image"):
        read = results.get("gates", {}).get(kind, {})
        measures += [(f"read from the {kind} features: {facet}", value) for facet, value in read.items()]
    told = {"evaluation", "psnr", "seconds_per_image", "gates", "parameters", "editing", "maps", "enlarging"}
    told |= {"distances", "rerank", "readers"} | unclip_card.SECTIONS.keys()
    measures += flat({name: value for name, value in results.items() if name not in told})
    measured = [row for row in measures if row[1] is not None]
    sections += [table(("measure", "value"), measured)] if measured else []
    sections += [_gates(results["gates"])] if "gates" in results else []
    return "\n\n".join(sections)


def _checker(found: Any) -> str:
    """How far the checker can be trusted, by the calibration that was made with the scores."""
    changed = _span(share for facets in found["changed"].values() for share in facets.values())
    spoilt = _span(share for kinds in found["defects"].values() for share in kinds.values())
    return (
        f"The checker itself was shown {found['scenes']} drawn scenes and as many spoilt ones, "
        f"{', '.join(found['true'])}. It says yes to {_span(found['true'].values())} of true descriptions and to "
        f"{changed} of those with a facet changed, and no to {spoilt} of each kind of defect "
        f"(`python -m zoo.evaluate.calibration`).{_drawing(found)}"
    )


def _drawing(found: Any) -> str:
    """How far it can be trusted about what is cleanly drawn; older calibrations do not say."""
    if "blemishes" not in found:
        return ""
    clean = _span(found["clean"].values())
    spoilt = _span(share for kinds in found["blemishes"].values() for share in kinds.values())
    return (
        " *Cleanly drawn too* also asks that no face is smeared and no object has a patch of another hue: "
        f"{clean} of true drawings pass, and {spoilt} of each kind of those that were spoilt so on purpose are caught."
    )


def _span(shares: Iterable[float]) -> str:
    low, high = min(told := [100 * share for share in shares]), max(told)
    return f"{high:g} %" if low == high else f"{low:g} to {high:g} %"


def _gates(found: Any) -> str:
    """Whether all that a picture depends on can be read from the features that networks are given."""
    missed = [f"{m['facet']} from the {m['features']} features, {m['read']:.3f}" for m in found["missed"]]
    return (
        "Before a generator is trained, a small probe should read every facet from the text features in 0.99 of "
        "captions, and counts and relations from a picture's in 0.95. "
        + (f"All are, but for {', '.join(missed)}." if missed else "All are.")
    )


def _editing(found: Any) -> str:
    """What the curve over strengths and inpainting scored, and the pictures of them."""
    curves, inpainting = found["img2img"], found["inpainting"]
    strengths = list(next(iter(curves.values())))
    said = {"changed": "changed as asked", "kept": "kept", "both": "both"}
    rows = [
        (f"another {change}", text, *(curve[s][key] for s in strengths), inpainting[change][key])
        for change, curve in curves.items()
        for key, text in said.items()
    ]
    outside = max(shares["outside"] for shares in inpainting.values())
    seam = max(shares["seam"] for shares in inpainting.values())
    scenes = found["scenes"] // (2 * len(curves))
    return (
        "### Editing\n\n"
        "![Rows of a given picture and what was made of it](editing.webp)\n\n"
        "From a drawn scene of one object to the same with another colour or shape (`image=`, by strength; *kept*: "
        "the object's place and size), and one of two objects replaced (`mask=`; *kept*: the other object). Shares of "
        f"{scenes} scenes each, judged by the checker; strength 1, which keeps nothing, is there to compare. "
        f"Outside the mask pixels differ by {outside:.2f} of 255 levels, and its border shows as a step of {seam:.1f}."
        "\n\n" + table(("asked for", "", *(f"strength {s}" for s in strengths), "inpainting"), rows)
    )


def _maps(found: Any) -> str:
    """How much of painted maps pictures keep, and pictures of them."""
    columns = [(split, how) for split in SPLITS for how in ("with", "without")]
    said = {
        "object cells": "cells painted as an object that show one",
        "background cells": "cells left empty that are empty",
        "objects": "painted objects seen as themselves, in their place",
        "prompt": "pictures that are all that the prompt says",
    }
    rows = [(text, *(found["kept"][split][how][key] for split, how in columns)) for key, text in said.items()]
    return (
        "### Painted maps\n\n"
        "![Rows of a painted map and its picture](maps.webp)\n\n"
        f"Maps of {found['scenes'] // 2} scenes each, painted in 64x64 pixels and counted in 16x16 cells; the same "
        "prompts without their map show what is owed to it. *Held out*: the dev half.\n\n"
        + table(("share", *(f"{SPLITS[split]}, {how} map" for split, how in columns)), rows)
    )


def _enlarging(found: Any) -> str:
    """What comes of true scenes that were made small, over the levels of noise-conditioning augmentation."""
    said = {
        "ok": "enlarged pictures that are still their scene",
        "psnr": "PSNR against the true large picture, dB",
        "colour_error": "difference from the small picture once made small again, of 255 levels",
        "speckle": "grain where the true picture is flat, of 255 levels",
    }
    levels = found["levels"]
    first = next(iter(levels.values()))
    rows = [(text, *(level[key] for level in levels.values())) for key, text in said.items() if key in first]
    scenes = first["scenes"]
    return (
        "### Enlarging\n\n"
        f"{scenes} fresh scenes, a third of them with held-out combinations, made small and enlarged by the cascade, "
        "by the level of noise on the small picture (`augmentation=`; "
        f"{found['used']:g} unless the call says otherwise).\n\n" + table(("", *(f"{level}" for level in levels)), rows)
    )


def distances(found: Any) -> dict[str, Any]:
    """What a set of pictures is, by what each figure is called."""
    said = {
        "clip_score_scenes": "CLIP score",
        "fd_clip": "FD-CLIP",
        "kd_clip": "KD-CLIP",
        "precision": "precision",
        "recall": "recall",
    }
    return {title: found[name] for name, title in said.items() if name in found}


def _distances(found: Any) -> str:
    """How near the pictures come, as a set, to fresh drawings."""
    made, drawn = distances(found["made"]), distances(found["drawn"])
    return (
        f"### As a set\n\nPictures of the captions of {found['scenes']} fresh scenes, held against the drawings of as "
        "many others, in the features of the zoo's CLIP: their distance, how many of them lie among drawings "
        "(precision), how many drawings lie among them (recall: variety), and the CLIP score with their "
        "captions. Other drawings in their place show the best that can be expected.\n\n"
        + table(("", *made), [("pictures", *made.values()), ("drawings", *drawn.values())])
    )


def _rerank(found: Any) -> str:
    """What CLIP's choice among candidates gives."""
    rows = [
        ("one candidate", with_interval(found["one"], found["one_interval"])),
        ("the one that CLIP finds most like its prompt", with_interval(found["best"], found["best_interval"])),
        ("any of them is right", with_interval(found["any"], found["any_interval"])),
        ("gained by the choice", with_interval(found["gain"], found["gain_interval"])),
    ]
    return (
        f"### Keeping the best\n\nOf {found['candidates']} candidates for each of {found['prompts']} prompts, drawn at "
        f"guidance {found['guidance']:g} (`zoo.evaluate.rerank`), with 95 % intervals over prompts.\n\n"
        + table(("right pictures", "share"), rows)
    )


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested results as rows: `{"a": {"b": 1}}` is the row "a, b"."""
    if not isinstance(value, dict):
        return [(prefix, value)]
    joined = ((f"{prefix}, {key}" if prefix else key, inner) for key, inner in value.items())
    return [row for name, inner in joined for row in flat(inner, name)]


def results_csv(config: ModelConfig) -> str:
    """Every figure that the config holds, as it is stored: a line each, `result,value`; of intervals both ends."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("result", "value"))
    for name, value in flat(config.results):
        if isinstance(value, list) and len(value) == 2:
            rows.writerows(((f"{name}, low", value[0]), (f"{name}, high", value[1])))
        elif value is not None:
            rows.writerow((name, value))
    return text.getvalue()
