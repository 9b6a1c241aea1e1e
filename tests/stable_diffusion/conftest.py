"""What is known of published checkpoints."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parent.parent / "data" / "published"


@pytest.fixture(params=["stable-diffusion-v1-5", "stable-diffusion-2-1"])
def published(request: pytest.FixtureRequest) -> dict[str, dict[str, dict[str, object]]]:
    """Configs and parameter shapes of a published checkpoint."""
    loaded: dict[str, dict[str, dict[str, object]]] = json.loads(
        gzip.decompress((PUBLISHED / f"{request.param}.json.gz").read_bytes())
    )
    return loaded
