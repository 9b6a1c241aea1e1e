"""A frozen text model and the name of the space that its features live in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from zoo import tensors


class NamedModel(nn.Module):
    """What text encoders over a transformers model share: the model at rest, and a name for its weights.

    spaces: what the file of the weights says that they define, where it does: rounded weights still give the features
    that others were trained on.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.spaces: Mapping[str, str] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights: see `zoo.tensors.fingerprint`."""
        return self.spaces.get("text") or tensors.fingerprint(self._weights())

    def name_by(self, stored: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Take the weights' name from these, as they were stored before the model took them as `dtype`."""
        if dtype != torch.float32:  # which rounds nothing: those are named when somebody asks
            self.spaces = {"text": tensors.fingerprint({name: stored[name] for name in self._weights()})}

    def retrained(self) -> None:
        """To be called when the weights have changed: they define another space now."""
        self.spaces = {}
        for known in ("fingerprint", "produces"):
            self.__dict__.pop(known, None)

    def _weights(self) -> Mapping[str, Tensor]:
        return self.model.state_dict()
