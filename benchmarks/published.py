"""A published Stable Diffusion 1.5 at full size, loaded and drawn with here and in diffusers, each in its own process.

python benchmarks/published.py                     random weights (4.3 GB, written for it), 512 x 512, 4 steps
python benchmarks/published.py --dtype bfloat16
python benchmarks/published.py --width 32 --side 128   a narrow one, in minutes
python benchmarks/published.py --folder PATH       a checkpoint that is there already

Both read the same files, warm in the file cache, with the same dtype, prompt and noise, and take turns in going first;
every run is the first of a fresh process. Of each figure the median over the runs is printed, and what it is here in
units of diffusers':

import_s     torch and whatever else the pipeline needs
load_s       a folder to a pipeline on its device; weights that are mapped are read only later, in the picture
step_s       a step with guidance: the median over the picture's, without the first, which warms up
picture_s    the whole first picture, from the prompt to PIL; four steps of the checkpoint's PLMS predict five times
peak_gb      the most memory that the process had, files mapped into it included
device_gb    the most that tensors took on a GPU

The last line tells how far apart the two pictures are. Writing and drawing need diffusers and some 5 GB of disk, which
are given back at the end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # torch is imported where its import is timed
    import numpy as np
    import torch

PROMPT, GUIDANCE, STEPS, SIDE, SCALE = "a large pink butterfly", 7.5, 4, 512, 8
DTYPES = ("float32", "bfloat16", "float16")
THEIR_TEXT = ("transformers:CLIPTextModel", "transformers:CLIPTokenizer")
OURS = ("torch", "zoo.loading", "zoo.stable_diffusion.pretrained", *THEIR_TEXT)
THEIRS = (
    *("torch", "diffusers:StableDiffusionPipeline", "diffusers:UNet2DConditionModel", "diffusers:AutoencoderKL"),
    *("diffusers:PNDMScheduler", *THEIR_TEXT),
)
Figures = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    """What both systems are asked to do."""

    folder: str
    dtype: str
    side: int
    device: str

    def noise(self) -> torch.Tensor:
        """The same initial noise for both, [1, 4, side / 8, side / 8]."""
        import torch

        source = torch.Generator().manual_seed(0)
        return torch.randn(1, 4, self.side // SCALE, self.side // SCALE, generator=source)

    def now(self) -> float:
        """The time, once the device has done what it was told."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


def ours(task: Task) -> tuple[Figures, np.ndarray]:
    start = time.perf_counter()
    brought(OURS)
    imported = task.now()
    import torch

    import zoo

    pipe = zoo.load(task.folder, device=task.device, dtype=getattr(torch, task.dtype))
    marks = [task.now()]

    def mark(stage: str, step: object) -> None:
        marks.append(task.now())

    drawn = pipe(
        PROMPT,
        n=1,
        noise=task.noise(),
        steps=STEPS,
        guidance=GUIDANCE,
        height=task.side,
        width=task.side,
        progress=False,
        callback=mark,
    ).images[0]
    return measured(task, start, imported, marks), pixels(drawn)


def theirs(task: Task) -> tuple[Figures, np.ndarray]:
    start = time.perf_counter()
    brought(THEIRS)
    imported = task.now()
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    logging.disable_progress_bar()
    kind = getattr(torch, task.dtype)
    pipe = StableDiffusionPipeline.from_pretrained(task.folder, torch_dtype=kind, safety_checker=None).to(task.device)
    pipe.set_progress_bar_config(disable=True)
    marks = [task.now()]

    def mark(pipeline: object, step: int, t: object, kept: dict[str, Any]) -> dict[str, Any]:
        marks.append(task.now())
        return kept

    drawn = pipe(
        PROMPT,
        latents=task.noise().to(kind),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=task.side,
        width=task.side,
        callback_on_step_end=mark,
    ).images[0]
    return measured(task, start, imported, marks), pixels(drawn)


SYSTEMS = {"zoo": ours, "diffusers": theirs}


def brought(names: tuple[str, ...]) -> None:
    """Import modules and, from lazy ones, what they name."""
    for name in names:
        module, _, inner = name.partition(":")
        found = importlib.import_module(module)
        if inner:
            getattr(found, inner)


def measured(task: Task, start: float, imported: float, marks: list[float]) -> Figures:
    """The figures of a run that is done: when it began, had its imports, its pipeline (the first mark), each step."""
    end = task.now()
    # The first step holds the text encoder and, here, PLMS' second prediction, which diffusers counts as a step.
    spans = [after - before for before, after in pairwise(marks[1:])]
    found = {
        "import_s": imported - start,
        "load_s": marks[0] - imported,
        "step_s": median(spans),
        "picture_s": end - marks[0],
        "peak_gb": peak() / 1e9,
    }
    if task.device != "cpu":
        import torch

        found["device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return found


def peak() -> int:
    """The most bytes of memory that this process had."""
    try:  # getrusage would tell of the parent where that was larger: a new process begins with its peak
        said = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        said = None
    if said is not None:
        return int(said[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def pixels(picture: Any) -> np.ndarray:
    import numpy as np

    return np.asarray(picture, dtype=np.int16)


def alone(work: Callable[..., T], *arguments: object) -> T:
    """Done in a fresh process: nothing of another run is in its memory."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def compare(task: Task, repeats: int) -> tuple[dict[str, list[Figures]], int]:
    """The figures of every run, and the largest difference of the two pictures in units of 1/255."""
    for names in (OURS, THEIRS):
        alone(brought, names)
    for path in Path(task.folder).rglob("*"):
        warm(path)
    runs: dict[str, list[Figures]] = {name: [] for name in SYSTEMS}
    drawn: dict[str, np.ndarray] = {}
    for turn in range(repeats):
        for name in list(SYSTEMS)[:: -1 if turn % 2 else 1]:
            figures, drawn[name] = alone(SYSTEMS[name], task)
            runs[name].append(figures)
    return runs, int(abs(drawn["zoo"] - drawn["diffusers"]).max())


def warm(path: Path) -> None:
    """Have a file in the file cache."""
    if path.is_file():
        with path.open("rb") as file:
            while file.read(2**24):
                pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320, help="channels of the U-Net's first level, a multiple of 32")
    parser.add_argument("--side", type=int, default=SIDE, help="of the picture, in pixels, a multiple of 64")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="a checkpoint to read instead of writing one")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with every run")
    asked = parser.parse_args()
    if asked.repeats < 1 or asked.width < 32 or asked.width % 32 or asked.side < 64 or asked.side % 64:
        parser.error("--repeats is at least 1, --width a multiple of 32, --side one of 64")
    if asked.folder is not None and not (asked.folder / "model_index.json").is_file():
        parser.error(f"{asked.folder} is no checkpoint in the diffusers layout: it has no model_index.json")
    with tempfile.TemporaryDirectory(prefix="zoo-benchmark-") as place:
        folder = asked.folder or Path(place) / f"stable-diffusion-1.5-random-{asked.width}"
        if asked.folder is None:
            alone(write, folder, asked.width)
        runs, apart = compare(Task(str(folder), asked.dtype, asked.side, asked.device), asked.repeats)
    table = {name: {key: median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
    table["ratio"] = {key: figure / table["diffusers"][key] for key, figure in table["zoo"].items()}
    if asked.json:
        said = {"folder": folder.name, "dtype": asked.dtype, "side": asked.side, "device": asked.device}
        print(json.dumps({**said, **table, "apart": apart, "runs": runs}))
        return
    import torch

    print(f"{folder.name}, {asked.dtype}, {asked.side} x {asked.side}, {STEPS} steps, guidance {GUIDANCE:g}")
    machine = torch.cuda.get_device_name() if asked.device == "cuda" else platform.processor() or platform.machine()
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    print(f"{machine}, {threads}, torch {torch.__version__}, median of {asked.repeats}")
    columns = list(table["zoo"])
    print("".join(f"{column:>12}" for column in ["", *columns]))
    for name, found in table.items():
        print(f"{name:>12}" + "".join(f"{found[column]:>12.3f}" for column in columns))
    print(f"The pictures differ by at most {apart}/255.")


def write(folder: Path, width: int) -> None:
    """A Stable Diffusion 1.5 with random weights in the published layout; `width` 320 is the published one."""
    import torch
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
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
