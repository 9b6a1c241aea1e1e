"""What adapters cost: a step of the U-Net with and without them, and a training step beside PEFT's.

python benchmarks/adapt.py [rank] [rounds] [--check]

First every model at hand that has adapters, drawing with each of them; then a U-Net a fifth as wide as Stable
Diffusion 1's, with random weights. Times are medians of interleaved rounds, beside the most that was asked of a ratio.
Memory is what the process, which has done nothing else, grows by from before training to its highest (on a GPU: what is
allocated on it). With --check the exit status is 1 if a ratio is above its limit.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.adapt.lora import LoRA

WAYS = ("zoo", "peft")
SIDE = 16  # of the latents
CHANNELS = (64, 128, 256, 256)
TARGETS = ("to_q", "to_k", "to_v", "to_out")
MERGED, OF_PEFT = 1.02, 1.05  # at most, of a step without adapters, and of PEFT's training step


def main(rank: int = 4, times: int = 15, check: bool = False) -> None:
    import torch

    import zoo
    from zoo.registry import list_adapters

    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{platform.machine()}, {os.cpu_count()} cores, {device}, torch {torch.__version__}, LoRA of rank {rank}")
    ratios: dict[str, tuple[float, float]] = {}  # and the most that was asked of each
    for name in zoo.list_models():
        for adapter in list_adapters(name):
            ratios[f"{name} with {adapter} merged"] = shipped(name, adapter, times, device), MERGED
    ratios["the U-Net's step, merged"] = steps(rank, times, device), MERGED
    print(f"training step, batch 2, {SIDE} x {SIDE} latents")
    taken = rounds({way: trainer(rank, way, device) for way in WAYS}, device, times)
    held: dict[str, int] = {}
    for way in WAYS:
        held[way] = alone(rank, times, way)
        print(f"  {way:24} {taken[way] * 1000:8.1f} ms  {held[way] / 2**20:8.1f} MiB")
    seconds, memory = taken["zoo"] / taken["peft"], held["zoo"] / held["peft"]
    print(f"  {'of PEFT':24} {seconds:8.3f}     {memory:8.3f}      (at most {OF_PEFT})")
    ratios |= {"seconds of training": (seconds, OF_PEFT), "memory of training": (memory, OF_PEFT)}
    over = [f"{name} takes {ratio:.3f}, at most {most}" for name, (ratio, most) in ratios.items() if ratio > most]
    if check and over:
        raise SystemExit("above the limit: " + "; ".join(over))


def shipped(name: str, adapter: str, times: int, device: str) -> float:
    """A picture of four steps by a model that ships: bare, with its adapter acting, and merged, whose ratio it is."""
    import zoo

    bare, adapted, merged = (zoo.load(name, device=device) for _ in range(3))
    for pipe in (adapted, merged):
        pipe.load_adapter(adapter, name="its own")
    merged.merge("its own")
    asked: dict[str, Any] = {"n": 1, "steps": 4, "progress": False}
    taken = rounds(
        {
            "none": lambda: bare("a red star", **asked),
            "acting": lambda: adapted("a red star", adapters={"its own": 1.0}, **asked),
            "merged": lambda: merged("a red star", **asked),
        },
        device,
        times,
    )
    print(f"{name}, a picture of 4 steps, {adapter}")
    for way, seconds in taken.items():
        limit = f"  (at most {MERGED})" if way == "merged" else ""
        print(f"  {way:24} {seconds * 1000:8.1f} ms  {seconds / taken['none']:8.3f} of none{limit}")
    return taken["merged"] / taken["none"]


def steps(rank: int, times: int, device: str) -> float:
    """A call of the network: bare, with the adapter loaded but not asked for, acting, and merged, whose ratio it is."""
    import torch

    from zoo.adapt.active import use
    from zoo.adapt.lora import inject

    network, lora = build(rank, device)
    bare, _ = build(rank, device)
    injection = inject(network, lora, "a")
    call = caller(device)

    def acting() -> None:
        with use({"a": 1.0}):
            call(network)

    def one_each() -> None:
        with use({"a": torch.tensor([1.0, 0.5])}):
            call(network)

    ways = {
        "none": lambda: call(bare),
        "loaded, not asked for": lambda: call(network),
        "acting": acting,
        "a strength per image": one_each,
    }
    with torch.no_grad():
        taken = rounds(ways, device, times)
        injection.merge()
        merged = rounds({"none": ways["none"], "merged": lambda: call(network)}, device, times)
    print(f"step of the U-Net, batch 2, {SIDE} x {SIDE} latents")
    for name, seconds in taken.items():
        print(f"  {name:24} {seconds * 1000:8.1f} ms  {seconds / taken['none']:8.3f} of none")
    ratio = merged["merged"] / merged["none"]
    print(f"  {'merged':24} {merged['merged'] * 1000:8.1f} ms  {ratio:8.3f} of none  (at most {MERGED})")
    return ratio


def alone(rank: int, times: int, way: str) -> int:
    """The bytes that training needs in a process of its own: memory that one has touched would be free for the next."""
    command = [sys.executable, __file__, str(rank), str(times), "--way", way]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def training(rank: int, times: int, way: str) -> None:
    """Print the bytes that training needs."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = trainer(rank, way, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = memory(device)
    rounds({way: step}, device, times)
    print(memory(device) - before)


def trainer(rank: int, way: str, device: str) -> Callable[[], None]:
    """A training step of the same LoRA by zoo or by PEFT; the network has been called once, without gradients."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model  # by both: what importing it takes must hide no training

    from zoo.adapt.active import use
    from zoo.adapt.lora import inject

    network, lora = build(rank, device)
    call = caller(device)
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    if way == "zoo":
        inject(network, lora, "a")
        parameters = list(lora.parameters())
        context = lambda: use({"a": 1.0})  # noqa: E731
    else:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
        network = inject_adapter_in_model(config, network)
        parameters = [p for p in network.parameters() if p.requires_grad]
    with torch.no_grad():
        call(network)  # kernels and their buffers are no part of training
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        with context():
            loss = call(network).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return step


def build(rank: int, device: str) -> tuple[nn.Module, LoRA]:
    """A U-Net, and a LoRA for it that changes something."""
    import torch

    from zoo.adapt.lora import LoRA, Target
    from zoo.stable_diffusion.unet import UNet, UNetConfig

    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=CHANNELS, groups=16)).requires_grad_(False).eval().to(device)
    lora = LoRA.build(network, [Target(pattern=f"*.{name}", rank=rank) for name in TARGETS])
    for layer in lora.layers.values():
        torch.nn.init.normal_(layer.up, std=0.01)
    return network, lora.to(device)


def caller(device: str) -> Callable[[nn.Module], Tensor]:
    """Calls a network, always with the same."""
    import torch

    from zoo.interface import Conditioning

    x, tokens = torch.randn(2, 4, SIDE, SIDE, device=device), torch.randn(2, 77, 768, device=device)
    times = torch.full((2,), 500.0, device=device)
    return lambda network: network(x, times, Conditioning(tokens=tokens))


def rounds(ways: dict[str, Callable[[], object]], device: str, times: int) -> dict[str, float]:
    """Median seconds of each way, tried in turn, after one that is not counted."""
    import torch

    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(times + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: median(seconds[1:]) for name, seconds in taken.items()}


def memory(device: str) -> int:
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    from zoo.cost import peak_resident

    known = peak_resident()
    if known is not None:
        return int(known * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("rank", nargs="?", type=int, default=4)
    arguments.add_argument("rounds", nargs="?", type=int, default=15)
    arguments.add_argument("--check", action="store_true", help="exit with 1 if a ratio is above its limit")
    arguments.add_argument("--way", choices=WAYS, help="print the bytes that training this way takes, and end")
    asked = arguments.parse_args()
    if asked.way is None:
        main(asked.rank, asked.rounds, asked.check)
    else:
        training(asked.rank, asked.rounds, asked.way)
