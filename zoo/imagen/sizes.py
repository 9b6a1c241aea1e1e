"""python -m zoo.imagen.sizes: the parameters of Imagen's super-resolution networks, beside the paper's counts.

The paper rounds, and its figures leave details open; what other readings of them would add is listed as well.
"""

from __future__ import annotations

import torch
from torch import nn

from zoo.efficient_unet import SR_256, SR_1024, EfficientUNet
from zoo.nn.resnet import ResidualBlock

PAPER = {"64 -> 256": (SR_256, 600), "256 -> 1024": (SR_1024, 400)}  # millions, arXiv 2205.11487


def count(*modules: object) -> int:
    """Parameters of modules; None, where a network has no such part, has none."""
    return sum(p.numel() for module in modules if isinstance(module, nn.Module) for p in module.parameters())


def components(network: EfficientUNet) -> dict[str, int]:
    """The parameters of a network by what they are for; their sum is all of them."""
    blocks = list(zip(network.down, reversed(network.up), strict=True))  # finest first, as the configuration
    found = {
        "stem and head": count(network.stem, network.norm, network.head),
        "time and augmentation": count(network.time, network.augmentation),
        "text: projection and pooling": count(network.text, network.pool),
    }
    for level, (down, up) in enumerate(blocks):
        found[f"level {level}: residual blocks"] = count(down.blocks, up.blocks)
        found[f"level {level}: strided and upsampling convolution"] = count(down.conv, up.upsample)
    found["attention"] = sum(count(down.attention, up.attention) for down, up in blocks)
    return found


def readings(network: EfficientUNet) -> dict[str, int]:
    """What other readings of the paper's figures would add to a network, each by itself."""
    config, levels = network.config, range(len(network.config.channels))
    plain = [block for block in network.modules() if isinstance(block, ResidualBlock) and block.shortcut is None]
    with torch.device("meta"):
        joining = [count(config.blocks(i, 2 * width)) for i, width in enumerate(config.channels)]
        alone = [count(config.blocks(i, width)) for i, width in enumerate(config.channels)]
    more = [blocks - 1 for blocks in config.blocks_per_level]
    return {
        "a 1x1 convolution on every shortcut (figure A.27)": sum(
            block.conv2.out_channels * (block.conv2.out_channels + 1) for block in plain
        ),
        "a skip from every residual block, not one a level": sum(more[i] * (joining[i] - alone[i]) for i in levels),
        "attention after every residual block of its levels": sum(
            2 * more[i] * count(network.down[i].attention) for i in levels
        ),
    }


def main() -> None:
    """Print both networks."""
    for name, (config, paper) in PAPER.items():
        with torch.device("meta"):
            network = EfficientUNet(config)
        total = count(network)
        print(f"{name}: {total / 1e6:.1f}M parameters; the paper says {paper}M, {paper - total / 1e6:+.1f}M from here")
        for part, parameters in components(network).items():
            print(f"  {parameters / 1e6:8.2f}M  {part}")
        print("  other readings would add")
        for reading, parameters in readings(network).items():
            print(f"  {parameters / 1e6:+8.2f}M  {reading}")
        print()


if __name__ == "__main__":
    main()
