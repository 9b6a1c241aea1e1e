"""Random weights for the networks under test."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import nn

PUBLISHED = Path(__file__).parent.parent / "data" / "published"

Network = TypeVar("Network", bound=nn.Module)


@pytest.fixture
def shake() -> Callable[[Network], Network]:
    """Give every parameter a random value, those that start at zero or one included, so that each one shows."""

    def shake(network: Network) -> Network:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.2 if parameter.ndim == 1 else 0.02)
        return network.eval()

    return shake


@pytest.fixture(params=["stable-diffusion-v1-5", "stable-diffusion-2-1"])
def published(request: pytest.FixtureRequest) -> dict[str, dict[str, dict[str, object]]]:
    """Configs and parameter shapes of a published checkpoint."""
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(
        gzip.decompress((PUBLISHED / f"{request.param}.json.gz").read_bytes())
    )
    return loaded
