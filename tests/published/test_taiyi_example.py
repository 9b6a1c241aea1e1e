"""examples/taiyi_pokemon.py on a Taiyi of reduced width draws what diffusers draws with the same old LoRA file."""

from __future__ import annotations

import gzip
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from zoo.diffusion.noise import ImageNoise
from zoo.registry import PUBLISHED

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "taiyi_pokemon.py"
DATA = ROOT / "tests" / "data" / "published" / "lora-stable-diffusion-v1-5.json.gz"
NAMES = runpy.run_path(str(EXAMPLE))
RANK, STEPS, GUIDANCE, SEED, N = 4, 10, 7.5, 5, 2
SETTINGS = ["--n", str(N), "--seed", str(SEED), "--steps", str(STEPS), "--guidance", str(GUIDANCE)]
LATENT = 16


@dataclass(frozen=True)
class Old:
    """A checkpoint, a LoRA file for it in the layout of early 2023, and what diffusers draws with and without it."""

    checkpoint: Checkpoint
    stored: OrderedDict[str, Tensor]
    file: Path
    plain: np.ndarray
    adapted: np.ndarray


@pytest.fixture(scope="module")
def old(write: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Old:
    # Every block of the published U-Net, and so every attention processor of it; only the widths are less.
    checkpoint = write(
        "taiyi",
        unet={
            **{"sample_size": LATENT, "block_out_channels": (32, 64, 64, 64), "layers_per_block": 2},
            **{"down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "attention_head_dim": 8},
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        },
    )
    vocabulary = checkpoint.folder / "tokenizer" / "vocab.txt"  # made to know all of the prompt
    words = vocabulary.read_text("utf-8").splitlines()
    vocabulary.write_text("\n".join(dict.fromkeys([*words, *NAMES["PROMPT"]])) + "\n", "utf-8")
    reference = checkpoint.reference()
    stored = processors(reference.unet)
    file = tmp_path_factory.mktemp("lora") / "pytorch_lora_weights.bin"
    torch.save(stored, file)
    plain = drawn(reference)
    # diffusers reads these keys still, but only under the name of the network; without it, it injects nothing.
    reference.load_lora_weights({f"unet.{key}": tensor.clone() for key, tensor in stored.items()})
    injected = [name for name, _ in reference.unet.named_modules() if name.endswith(".lora_A")]
    assert len(injected) == len(stored) // 2
    return Old(checkpoint, stored, file, plain, drawn(reference))


def processors(unet: Any) -> OrderedDict[str, Tensor]:
    """A LoRA of all attention processors of diffusers' U-Net, as its `save_attn_procs` of 0.13 to 0.16 named them."""
    source = torch.Generator().manual_seed(9)
    stored: OrderedDict[str, Tensor] = OrderedDict()
    for name in unet.attn_processors:
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for projection in ("to_q", "to_k", "to_v", "to_out"):
            layer = getattr(attention, projection)
            out, width = (layer[0] if projection == "to_out" else layer).weight.shape
            down, up = torch.randn(RANK, width, generator=source), torch.randn(out, RANK, generator=source)
            stored[f"{name}.{projection}_lora.down.weight"] = down / width**0.5
            stored[f"{name}.{projection}_lora.up.weight"] = up / RANK**0.5
    return stored


def drawn(reference: Any) -> np.ndarray:
    """What diffusers draws from the noise that the example's seeds stand for, [images, height, width, 3] in [0, 1]."""
    noise = ImageNoise(range(SEED, SEED + N)).draw("latent", -1, (N, 4, LATENT, LATENT))
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
    return reference([NAMES["PROMPT"]] * N, latents=noise, **settings).images


def run(*arguments: object) -> list[Path]:
    return NAMES["main"]([str(argument) for argument in (*arguments, *SETTINGS)])


def pictures(paths: list[Path]) -> np.ndarray:
    assert len(paths) == N + 1  # the contact sheet
    return np.stack([np.asarray(Image.open(path), dtype=np.float64) / 255 for path in paths[:N]])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator rounds otherwise than the reference, which is on the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


def test_the_file_is_as_published(old: Old) -> None:
    published = json.loads(gzip.decompress(DATA.read_bytes()))["attn-procs"]
    assert old.stored.keys() == published.keys()
    assert {tensor.shape[key.endswith("up.weight")] for key, tensor in old.stored.items()} == {RANK}


@pytest.mark.filterwarnings("error::zoo.text.tokenizer.UnknownWords")
def test_it_draws_what_diffusers_draws(old: Old, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = pictures(run(old.checkpoint.folder, old.file, "--out", tmp_path))
    assert old.adapted.std() > 0.05
    assert ((old.adapted > 0) & (old.adapted < 1)).mean() > 0.5  # not black and white by clipping
    assert np.abs(found - old.adapted).max() * 255 <= 2
    for one, other in zip(found, old.plain, strict=True):
        assert np.abs(one - other).mean() * 255 > 8  # and the LoRA shows
    assert "unet: 128 modules, rank 4" in capsys.readouterr().out


def test_without_strength_it_draws_the_model_alone(old: Old, tmp_path: Path) -> None:
    found = pictures(run(old.checkpoint.folder, old.file, "--out", tmp_path, "--strength", 0))
    assert np.abs(found - old.plain).max() * 255 <= 2


@pytest.mark.slow
def test_without_paths_it_takes_what_is_published(old: Old, tmp_path: Path) -> None:
    """As a command, offline, both repositories being in the hub's cache under the ids that the example names."""
    assert NAMES["MODEL"] == PUBLISHED["taiyi-anime-zh"].repository
    for repository, files in ((NAMES["MODEL"], old.checkpoint.folder), (NAMES["LORA"], old.file.parent)):
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.copytree(files, place / "snapshots" / ("a" * 40))
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("a" * 40)
    cached = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--out", str(tmp_path / "out"), *SETTINGS],
        env=os.environ | cached,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    found = pictures([Path(tmp_path, line) for line in done.stdout.splitlines() if line.endswith(".png")])
    assert np.abs(found - old.adapted).max() * 255 <= 2


def astray(stored: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((key.replace("attentions", "elsewhere"), tensor) for key, tensor in stored.items())


def one_astray(stored: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    first, *_ = stored
    return OrderedDict((key.replace("attn1", "attn3") if key == first else key, t) for key, t in stored.items())


def wider(stored: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((key, t.repeat(1, 2) if "down.weight" in key else t) for key, t in stored.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (astray, r"fits nowhere: 0 modules match, 256 keys do not(.|\n)*no such module \(256\)"),
        (wider, r"fits nowhere: 0 modules match, 256 keys do not(.|\n)*misshapen"),
        (one_astray, "fits in part only: 127 modules match, 2 keys do not"),
    ],
)
def test_a_lora_that_does_not_fit_is_an_error(
    change: Callable[[OrderedDict[str, Tensor]], OrderedDict[str, Tensor]], message: str, old: Old, tmp_path: Path
) -> None:
    torch.save(change(old.stored), tmp_path / "other.bin")
    with pytest.raises(ValueError, match=message):
        run(old.checkpoint.folder, tmp_path / "other.bin", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
