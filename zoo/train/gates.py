"""The gates a text encoder passes before others build on it: `python -m zoo.train.gates weights/clip-small`.

Text: a one-layer cross-attention probe on the frozen tokens reads every facet of a full caption, with one learned query
for each facet, as a U-Net's cross-attention would. Image, of a CLIP: a linear probe on the frozen embedding reads how
many objects there are and how two of them lie. Probes are trained on seen scenes and tested on fresh ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from zoo.clip import Clip
from zoo.data.captions import caption
from zoo.data.draw import render
from zoo.data.scenes import Scene, random_scene
from zoo.interface import TextEncoder
from zoo.text.clip import ClipTextEncoder
from zoo.text.t5 import T5TextEncoder
from zoo.train.command import mistakes_told
from zoo.train.facets import ABSENT, CLASSES, CrossAttentionProbe, LinearProbe, labels, misread
from zoo.train.task import to_float

TEXT_GATE, IMAGE_GATE = 0.99, 0.95
IMAGE_FACETS = ("count", "relation")
WINDOW = 32  # tokens of a T5, whose file leaves that open: the longest full caption has 27 and an end marker


class Missed(TypedDict):
    """A facet that is read less well than asked for, from the features of a text or of an image."""

    features: str
    facet: str
    read: float
    asked: float


class Report(TypedDict):
    """How well each facet is read, and what is read less well than asked for."""

    text: dict[str, float]
    image: NotRequired[dict[str, float]]
    missed: list[Missed]
    passed: bool


def text_gate(encoder: TextEncoder, *, train: int = 24_000, test: int = 3_000, seed: int = 0) -> dict[str, float]:
    """Accuracy of each facet read from the tokens that `encoder` gives a U-Net, captions half English, half Chinese.

    What the encoder masks is not read.
    """

    def features(scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, ...]:
        # "plain" is a default that captions mostly leave unsaid; cartoon and sketch are always said in full ones.
        texts = [caption(s, "en" if i % 2 else "zh", rng, full=True) for i, s in enumerate(scenes)]
        with torch.no_grad():
            encoded = [encoder.encode(texts[i : i + 500]) for i in range(0, len(texts), 500)]
        masks = [text.mask for text in encoded if text.mask is not None]
        return torch.cat([text.tokens for text in encoded]), *([torch.cat(masks)] if masks else [])

    return _probe(CrossAttentionProbe, features, train, test, seed)


def image_gate(clip: Clip, *, train: int = 16_000, test: int = 3_000, seed: int = 0) -> dict[str, float]:
    """Accuracy of each facet read linearly from image embeddings."""

    def features(scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, ...]:
        parts = []
        for i in range(0, len(scenes), 250):
            pixels = torch.from_numpy(np.stack([render(s) for s in scenes[i : i + 250]]))
            parts.append(clip.embed_images(to_float(pixels) / 2 + 0.5))
        return (torch.cat(parts),)

    return _probe(LinearProbe, features, train, test, seed)


def _probe(
    kind: Callable[[int], nn.Module],
    features: Callable[[list[Scene], np.random.Generator], tuple[Tensor, ...]],
    train: int,
    test: int,
    seed: int,
) -> dict[str, float]:
    rng = np.random.default_rng([seed, 2**41])
    scenes = [random_scene(rng) for _ in range(train + test)]
    inputs, truth = features(scenes, rng), torch.tensor([labels(s.describe()) for s in scenes])
    torch.manual_seed(seed)
    probe = kind(inputs[0].shape[-1]).train()
    epochs, batch = 12, 200
    optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=1e-4)
    steps = epochs * (train // batch)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(train, size=batch))
        loss = misread(probe(*(part[rows] for part in inputs)), truth[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    probe.eval()
    with torch.no_grad():
        outputs, wanted = probe(*(part[train:] for part in inputs)), truth[train:]
    figures = {}
    for i, name in enumerate(CLASSES):
        there = wanted[:, i] != ABSENT
        figures[name] = float((outputs[i].argmax(-1) == wanted[:, i])[there].float().mean())
    return figures


def report(folder: str) -> Report:
    """The gates of a folder that is a CLIP (text and image) or a T5 (text), and whether they are passed.

    Raises:
        ValueError: the folder is neither.
    """
    place = Path(folder)
    try:
        kind = json.loads((place / "config.json").read_text("utf-8"))["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{place / 'config.json'} does not say what model it is of: {error}") from error
    if kind == "t5":
        return judged(text_gate(T5TextEncoder.load(place, {"length": WINDOW})))
    clip = Clip.load(folder)
    return judged(text_gate(ClipTextEncoder.load(place)), image_gate(clip))


def judged(text: Mapping[str, float], image: Mapping[str, float] | None = None) -> Report:
    """What was read, and which facets are read less well than asked for."""
    gates = {("text", facet): (share, TEXT_GATE) for facet, share in text.items()}
    gates |= {("image", facet): (image[facet], IMAGE_GATE) for facet in IMAGE_FACETS} if image is not None else {}
    missed = [
        Missed(features=features, facet=facet, read=share, asked=asked)
        for (features, facet), (share, asked) in gates.items()
        if share < asked
    ]
    found = Report(text=dict(text), missed=missed, passed=not missed)
    if image is not None:
        found["image"] = dict(image)
    return found


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    found = argparse.ArgumentParser(prog="python -m zoo.train.gates", description=__doc__)
    found.add_argument("folder", help="a CLIP or T5 in the transformers layout, such as weights/clip-small")
    return found


def main() -> None:
    """Print the gates as JSON."""
    folder = parser().parse_args().folder
    with mistakes_told():
        print(json.dumps(report(folder), indent=1))


if __name__ == "__main__":
    main()
