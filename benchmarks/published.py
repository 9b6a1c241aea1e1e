"""A published Stable Diffusion 1.5 at full size, loaded and drawn with here and in diffusers, each in its own process.

python benchmarks/published.py                     random weights (4.3 GB, written once), 512 x 512, 4 steps
python benchmarks/published.py --dtype bfloat16
python benchmarks/published.py --width 32          a narrow one, in seconds
python benchmarks/published.py --folder PATH       a checkpoint that is there already

Prints the seconds that imports and then loading take, those of a step (the median, guidance on) and of the whole
picture, and the peak of memory over all. Both read the same folder, warm in the file cache. Writing and drawing need
diffusers.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

PROMPT, GUIDANCE, STEPS, SIDE = "a large pink butterfly", 7.5, 4, 512
KEPT = Path.home() / ".cache" / "zoo-benchmarks"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
THEIR_TEXT = ("transformers:CLIPTextModel", "transformers:CLIPTokenizer")
Measured = dict[str, float]


def write(folder: Path, width: int) -> None:
    """A Stable Diffusion 1.5 with random weights in the published layout; `width` 320 is the published one."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    torch.manual_seed(0)
    share = width / 320
    text = max(64, round(768 * share / 64) * 64)
    # A vocabulary of single letters: prompts are padded to 77 tokens, so its size costs no time.
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=text,
            intermediate_size=4 * text,
            num_hidden_layers=12,
            num_attention_heads=text // 64,
            projection_dim=text,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=tuple(width * times for times in (1, 2, 4, 4)),
        cross_attention_dim=text,
        attention_head_dim=8,
    )
    # The autoencoder keeps its groups of 32.
    channels = tuple(max(32, round(128 * share / 32) * 32) * times for times in (1, 2, 4, 4))
    vae = AutoencoderKL(
        sample_size=512,
        block_out_channels=channels,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    making = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    pipeline.save_pretrained(making)
    os.replace(making, folder)


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return act(), time.perf_counter() - start


def ours(folder: str, dtype: str, side: int, device: str) -> Measured:
    _, importing = timed(lambda: brought("zoo.loading", "zoo.stable_diffusion.pretrained", *THEIR_TEXT))
    import zoo

    pipe, loading = timed(lambda: zoo.load(folder, device=device, dtype=DTYPES[dtype]))
    marks = [time.perf_counter()]

    def mark(stage: str, step: object) -> None:
        marks.append(time.perf_counter())

    settings = {"n": 1, "steps": STEPS, "guidance": GUIDANCE, "height": side, "width": side, "progress": False}
    _, drawing = timed(lambda: pipe(PROMPT, callback=mark, **settings))
    return measured(importing, loading, marks, drawing, device)


def theirs(folder: str, dtype: str, side: int, device: str) -> Measured:
    from_diffusers = ("diffusers:StableDiffusionPipeline", "diffusers:UNet2DConditionModel", "diffusers:AutoencoderKL")
    _, importing = timed(lambda: brought(*from_diffusers, "diffusers:PNDMScheduler", *THEIR_TEXT))
    from diffusers import StableDiffusionPipeline

    kind = DTYPES[dtype]
    pipe, loading = timed(
        lambda: StableDiffusionPipeline.from_pretrained(folder, torch_dtype=kind, safety_checker=None).to(device)
    )
    pipe.set_progress_bar_config(disable=True)
    marks = [time.perf_counter()]

    def mark(pipeline: object, step: int, t: object, kept: dict[str, Any]) -> dict[str, Any]:
        marks.append(time.perf_counter())
        return kept

    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": side, "width": side}
    _, drawing = timed(lambda: pipe(PROMPT, callback_on_step_end=mark, **settings))
    return measured(importing, loading, marks, drawing, device)


def brought(*names: str) -> None:
    """Import modules and, from lazy ones, what they name."""
    for name in names:
        module, _, inner = name.partition(":")
        found = importlib.import_module(module)
        if inner:
            getattr(found, inner)


def measured(importing: float, loading: float, marks: list[float], drawing: float, device: str) -> Measured:
    # The first span holds the text encoder, and here PLMS' second prediction, which the reference counts as a step.
    spans = [end - start for start, end in pairwise(marks[1:])]
    found = {
        "import_s": importing,
        "load_s": loading,
        "step_s": median(spans),
        "picture_s": drawing,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    if device != "cpu":
        found["device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def alone(measure: Callable[..., Measured], *arguments: object) -> Measured:
    """Measured in a fresh process: nothing of another run is in its memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320, help="channels of the U-Net's first level, a multiple of 32")
    parser.add_argument("--side", type=int, default=SIDE, help="of the picture, in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="a checkpoint to read instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    asked = parser.parse_args()
    folder = asked.folder or KEPT / f"stable-diffusion-1.5-random-{asked.width}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        alone(write_and_tell, folder, asked.width)
    arguments = (str(folder), asked.dtype, asked.side, asked.device)
    alone(ours, *arguments)  # warms the file cache for both
    runs = {name: [alone(measure, *arguments) for _ in range(asked.repeats)] for name, measure in SYSTEMS.items()}
    table = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    if asked.json:
        print(json.dumps({"folder": str(folder), "dtype": asked.dtype, "side": asked.side, **table}))
        return
    print(f"{folder.name}, {asked.dtype}, {asked.side} x {asked.side}, {STEPS} steps, guidance {GUIDANCE:g}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    columns = list(next(iter(table.values())))
    print("".join(f"{column:>12}" for column in ["", *columns]))
    for name, found in table.items():
        print(f"{name:>12}" + "".join(f"{found[column]:>12.2f}" for column in columns))


def write_and_tell(folder: Path, width: int) -> Measured:
    _, seconds = timed(lambda: write(folder, width))
    return {"write_s": seconds}


SYSTEMS: dict[str, Callable[..., Measured]] = {"zoo": ours, "diffusers": theirs}

if __name__ == "__main__":
    main()
