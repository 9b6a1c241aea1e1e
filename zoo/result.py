"""What a call of a pipeline gives: images, and everything that is needed to make each of them again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from zoo.atomic import write_image
from zoo.sheet import contact_sheet

SettingsT = Mapping[str, object]


@dataclass(frozen=True, repr=False)
class Result:
    """Images [batch, 3, height, width] in [0, 1], float32 on the CPU, prompt by prompt; image i has `seeds[i]`.

    `pipe(prompts[i], n=1, seed=seeds[i], negative=negatives[i], **settings)` makes image i again; where
    `settings["adapters"]` is a list, each image having its own, it is the i-th of them. `given` is a mark of the
    picture, mask, layout or noise that the call began with, which have to be given again; "" if there was none.
    """

    tensor: Tensor
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: SettingsT
    model: str = ""
    negatives: tuple[str, ...] = field(default=())
    unsafe: tuple[bool, ...] = field(default=())  # what the pipeline's safety checker found, if it has one
    given: str = ""

    def __repr__(self) -> str:
        return f"Result({len(self)} images {list(self.tensor.shape[1:])} by {self.model}, seeds {list(self.seeds)})"

    def __len__(self) -> int:
        return len(self.seeds)

    @property
    def images(self) -> list[Image.Image]:
        """The images as PIL RGB."""
        return as_pictures(self.tensor)

    def sheet(self) -> Image.Image:
        """All images on one contact sheet, a row per prompt."""
        return contact_sheet(self.images, self.prompts)

    def save(self, folder: str | os.PathLike[str], *, sheet: Image.Image | None = None) -> list[Path]:
        """Write every image and a contact sheet, or the sheet that is given, as PNG; returns the paths, the sheet last.

        Names tell prompt and seed and end in a mark of model, settings and what was given: the same call writes the
        same names and different ones never overwrite each other. Every PNG holds `prompt`, `negative`, `model`,
        `seed`, `settings` (JSON) and, where it is not empty, `given` as text. A file appears under its name only when
        it is whole.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        paths = []
        for index, (image, prompt, seed) in enumerate(zip(self.images, self.prompts, self.seeds, strict=True)):
            negative = self.negatives[index] if self.negatives else ""
            facts = {"prompt": prompt, "negative": negative, "model": self.model, "seed": seed}
            facts |= {"given": self.given} if self.given else {}
            mark = _mark(facts | {"settings": self.settings})
            path = target / f"{_slug(prompt)}-seed{seed}-{mark}.png"
            _write(image, path, facts | {"settings": json.dumps(self.settings)})
            paths.append(path)
        facts = {"prompt": "\n".join(dict.fromkeys(self.prompts)), "model": self.model}
        last = target / f"contact-sheet-{_mark([path.name for path in paths])}.png"
        _write(sheet or self.sheet(), last, facts | {"settings": json.dumps(self.settings)})
        return [*paths, last]


def as_pictures(images: Tensor) -> list[Image.Image]:
    """Images [batch, 3, height, width] in [0, 1] as PIL RGB."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(image)) for image in pixels]


def _write(image: Image.Image, path: Path, facts: Mapping[str, object]) -> None:
    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    info.add_itxt("Software", "zoo")
    write_image(path, image, durable=False, pnginfo=info)


def mark_of(**tensors: Tensor | None) -> str:
    """Twelve hexadecimal digits that tell these tensors from others; "" if there are none."""
    there = {name: tensor.detach().cpu() for name, tensor in tensors.items() if tensor is not None}
    digest = hashlib.sha256()
    for name, tensor in there.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12] if there else ""


def _mark(value: Mapping[str, object] | Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _slug(prompt: str) -> str:
    words = re.findall(r"\w+", prompt.lower())
    return "-".join(words)[:40].strip("-") or "no-prompt"
