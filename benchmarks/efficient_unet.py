"""The Efficient U-Net beside an ADM U-Net with as many parameters, on the same input (arXiv 2205.11487, D.3.2).

python benchmarks/efficient_unet.py               training, sampling and memory at two sizes, and where they come from
python benchmarks/efficient_unet.py --full-size   one pass of each of Imagen's two super-resolution networks

The paper reports that its Efficient U-Net samples 2 to 3 times as fast. Everything is measured in processes of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.adm import AdmUNet, AdmUNetConfig
from zoo.cost import peak_resident
from zoo.diffusion.denoiser import Denoiser
from zoo.diffusion.noise import ImageNoise
from zoo.diffusion.objective import loss
from zoo.diffusion.sample import sample
from zoo.diffusion.schedule import Schedule
from zoo.efficient_unet import SR_256, SR_1024, EfficientUNet, EfficientUNetConfig
from zoo.interface import Conditioning, Sampling

SIZES, BATCH, STEPS, REPEATS = (64, 128), 4, 8, 5
TOKENS = 16
SMALL = EfficientUNetConfig(
    channels=(32, 64, 96, 96), blocks_per_level=(1, 1, 2, 3), heads=4, context_width=128, text_channels=128, groups=8
)
Config = EfficientUNetConfig | AdmUNetConfig


def build(config: Config) -> EfficientUNet | AdmUNet:
    return EfficientUNet(config) if isinstance(config, EfficientUNetConfig) else AdmUNet(config)


def parameters(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(config).parameters())


def plain(efficient: EfficientUNetConfig) -> AdmUNetConfig:
    """The ADM U-Net nearest in parameters: three blocks in every level, and channels in the same proportions.

    Like the Efficient U-Net it looks at the text in its coarsest level only: more attention would cost it more time.
    """
    proportions = [channels / efficient.channels[0] for channels in efficient.channels]

    def of(width: float) -> AdmUNetConfig:
        return AdmUNetConfig(
            in_channels=efficient.in_channels,
            channels=tuple(8 * max(1, round(width * factor / 8)) for factor in proportions),
            attention=(False, False, False, True),
            head_width=8,
            context_width=efficient.context_width,
            text_channels=efficient.text_channels,
            pool_heads=efficient.heads,
            augmentation=efficient.augmentation,
            groups=8,
        )

    wanted = parameters(efficient)
    low, high = 8.0, 1024.0
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(of(middle)) < wanted else (low, middle)
    best = min((of(low), of(high)), key=lambda config: abs(parameters(config) - wanted))
    share = parameters(best) / wanted
    if abs(share - 1) > 0.03:
        raise SystemExit(f"no ADM U-Net of {wanted} parameters: the nearest has {share:.3f} times as many")
    return best


def inputs(config: Config, batch: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Conditioning]:
    image = torch.rand(batch, 3, size, size) * 2 - 1
    concat = nn.functional.interpolate(nn.functional.avg_pool2d(image, 2), scale_factor=2.0, mode="bilinear")
    tokens = None if config.context_width is None else torch.randn(batch, TOKENS, config.context_width).to(dtype)
    level = torch.full((batch,), 0.25)
    return image.to(dtype), Conditioning(tokens=tokens, concat=concat.to(dtype), augmentation=level)


def measure(config: Config, size: int) -> dict[str, float]:
    """Seconds and MiB of training and sampling; to be run in a process of its own, because peaks never fall."""
    before = peak()
    network = build(config)
    denoiser = Denoiser(network, Schedule("cosine"), "v")
    image, conditioning = inputs(config, BATCH, size)
    noise, sampling = ImageNoise(range(BATCH)), Sampling(steps=STEPS)
    sampled = seconds(lambda: sample(denoiser.eval(), conditioning, None, noise, sampling, image.shape))
    sample_memory = peak() - before

    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss(denoiser.train(), image, conditioning).backward()
        optimiser.step()

    trained = seconds(step)
    return {"train": trained, "sample": sampled, "train_memory": peak() - before, "sample_memory": sample_memory}


def full_size(config: EfficientUNetConfig, size: int) -> dict[str, float]:
    """One pass in bfloat16 with random weights, which are never held in any other type."""
    before, start = peak(), time.perf_counter()
    with torch.device("meta"):
        network = EfficientUNet(config).to(torch.bfloat16)
    network.to_empty(device="cpu").to(memory_format=torch.channels_last)
    for module in network.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif (query := getattr(module, "query", None)) is not None:
            nn.init.normal_(query)
    image, conditioning = inputs(config, 1, size, torch.bfloat16)
    built, start = time.perf_counter() - start, time.perf_counter()
    with torch.inference_mode():
        out = network(image, torch.tensor([500.0]), conditioning)
    taken = time.perf_counter() - start
    if out.shape != image.shape or not out.isfinite().all():
        raise SystemExit(f"the pass gave {list(out.shape)}, or numbers that are not finite")
    return {"seconds": taken, "memory": peak() - before, "building": built, "std": out.float().std().item()}


def peak() -> float:
    """The most memory this process has held, in MiB."""
    known = peak_resident()
    if known is not None:
        return known
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def seconds(work: Callable[[], object]) -> float:
    """The median of several times, after one that does not count."""
    taken = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def alone(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """`work` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def by_size(config: Config, size: int) -> dict[int, tuple[int, float]]:
    """Parameters, and multiply-adds for one image, by the height of what is computed; 0 is what has no height."""
    found: dict[int, tuple[int, float]] = {}
    with torch.device("meta"):
        network = build(config)
        image, conditioning = inputs(config, 1, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        height, counted = 0, 0

        def note(module: nn.Module, _: object, output: Tensor) -> None:
            # What came since the last layer, attention between layers included, belongs to the height reached.
            nonlocal height, counted
            height = output.shape[-1] if output.ndim == 4 else height
            own, total = sum(p.numel() for p in module.parameters()), counter.get_total_flops()
            parameters, operations = found.get(height, (0, 0.0))
            found[height] = (parameters + own, operations + (total - counted) / 2)
            counted = total

        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.GroupNorm | nn.LayerNorm):
                module.register_forward_hook(note)
        network(image, torch.zeros(1, device="meta"), conditioning)
    return found


def print_by_size(efficient: EfficientUNetConfig, adm: AdmUNetConfig, size: int) -> None:
    ours, theirs = by_size(efficient, size), by_size(adm, size)
    print(f"{'':12}{'million parameters':>24}{'giga multiply-adds':>26}")
    print(f"{'at height':12}{'Efficient':>14}{'ADM':>10}{'Efficient':>16}{'ADM':>10}")
    for height in sorted(ours.keys() | theirs.keys(), reverse=True):
        (own, work), (other, more) = ours.get(height, (0, 0.0)), theirs.get(height, (0, 0.0))
        name = str(height or "vectors")
        print(f"{name:12}{own / 1e6:14.2f}{other / 1e6:10.2f}{work / 1e9:16.3f}{more / 1e9:10.3f}")
    (own, work), (other, more) = ((sum(column) for column in zip(*t.values(), strict=True)) for t in (ours, theirs))
    print(f"{'in all':12}{own / 1e6:14.2f}{other / 1e6:10.2f}{work / 1e9:16.3f}{more / 1e9:10.3f}", end="")
    print(f"   the ADM U-Net has {other / own:.3f} of the parameters and {more / work:.2f} of the work\n")


def compare() -> None:
    adm = plain(SMALL)
    print(f"channels {SMALL.channels}, blocks {SMALL.blocks_per_level}; ADM: channels {adm.channels}, blocks 3 a level")
    print(
        f"batch {BATCH}, {STEPS} steps of {Sampling().sampler}, fp32, {torch.get_num_threads()} threads, "
        f"medians of {REPEATS}"
    )
    rows = (
        ("training steps a second", "train", 1, True),
        (f"seconds for {BATCH} samples", "sample", 3, False),
        ("MiB training", "train_memory", 0, False),
        ("MiB sampling", "sample_memory", 0, False),
    )
    for size in SIZES:
        ours, theirs = alone(measure, SMALL, size), alone(measure, adm, size)
        print(f"\n{f'{size // 2} -> {size} pixels':28}{'Efficient':>10}{'ADM':>10}   better by")
        for name, key, digits, rate in rows:
            a, b = (1 / side[key] if rate else side[key] for side in (ours, theirs))
            digits = 2 if rate else digits
            print(f"{name:28}{a:10.{digits}f}{b:10.{digits}f}{theirs[key] / ours[key]:10.2f} x")
    print(f"\nWhere it comes from, {SIZES[-1]} pixels")
    print_by_size(SMALL, adm, SIZES[-1])
    print("By arithmetic alone, at the size that the paper speaks of: 64 -> 256 pixels, sampling 2 to 3 times as fast")
    print_by_size(SR_256, plain(SR_256), 256)


def published() -> None:
    print("One image, bfloat16, random weights")
    for name, config, size in (("SR_256", SR_256, 256), ("SR_1024", SR_1024, 1024)):
        result = alone(full_size, config, size)
        work = sum(operations for _, operations in by_size(config, size).values())
        print(
            f"{name:8} {size}x{size}  {parameters(config) / 1e6:.0f}M parameters  {work / 1e9:.0f} giga multiply-adds  "
            f"{result['seconds']:.1f} s a pass, {result['memory'] / 1024:.2f} GiB over the libraries' "
            f"(weights made in {result['building']:.1f} s; output's deviation {result['std']:.2f})"
        )


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--full-size", action="store_true", help="one pass of each published network instead")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    published() if arguments.parse_args().full_size else compare()
