"""Text for tiny priors: random tokens and CLIP text embeddings, a row of which is the same in every batch."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

from zoo.interface import TextFeatures, TextSpec

PUBLISHED = Path(__file__).parent.parent / "data" / "published"
SIZES = {"embedding": 8, "text_width": 6, "length": 5}
SMALL = {**SIZES, "width": 16, "heads": 2, "layers": 2}
SPEC = TextSpec(6, "words", 5, 8)

Network = TypeVar("Network", bound=nn.Module)
Words = Callable[[Sequence[int]], TextFeatures]


@pytest.fixture
def small() -> dict[str, int]:
    """The sizes of a tiny prior's network."""
    return dict(SMALL)


@pytest.fixture
def spec() -> TextSpec:
    """The text that a tiny prior needs."""
    return SPEC


@pytest.fixture
def words() -> Words:
    """Features of made-up prompts, each a number."""

    def words(prompts: Sequence[int]) -> TextFeatures:
        tokens, pooled = [], []
        for prompt in prompts:
            source = torch.Generator().manual_seed(prompt)
            tokens.append(torch.randn(5, 6, generator=source))
            pooled.append(torch.randn(8, generator=source))
        return TextFeatures(torch.stack(tokens), None, torch.stack(pooled), "words")

    return words


@pytest.fixture
def shake() -> Callable[[Network], Network]:
    """Give every parameter a random value, those that start at zero or one included, so that each one shows."""

    def shake(network: Network) -> Network:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
        return network.eval()

    return shake


@pytest.fixture(params=["karlo-v1-alpha", "kandinsky-2-2"])
def published(request: pytest.FixtureRequest) -> dict[str, dict[str, dict[str, object]]]:
    """Config and parameter shapes of a published prior."""
    packed = (PUBLISHED / f"{request.param}-prior.json.gz").read_bytes()
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(gzip.decompress(packed))
    return loaded
