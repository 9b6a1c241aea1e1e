"""What the adapters of a call go with, where the call does otherwise."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict

from zoo.interface import Sampling


class UnmetSettings(UserWarning):
    """An adapter acts in a call whose settings are not those that it was made for."""


def warn_of_unmet(asked: Mapping[str, Mapping[str, object]], sampling: Sampling) -> None:
    """Warn of the adapters of a call that ask for other settings, by their names, than it is sampled with.

    Settings that are none of sampling, such as a size, are not looked at. For `Pipeline.__call__` alone, whose caller
    is told.
    """
    used = {name: _plain(value) for name, value in asdict(sampling).items()}
    for adapter, settings in asked.items():
        unmet = {name: value for name, value in settings.items() if name in used and used[name] != _plain(value)}
        if unmet:
            instead = _said({name: used[name] for name in unmet})
            warnings.warn(
                f"adapter {adapter!r} is made for {_said(unmet)}, but this call has {instead}: "
                f'expect poor pictures, or pass **pipe.adapters()["{adapter}"].settings',
                UnmetSettings,
                stacklevel=4,  # the caller of what torch.no_grad() has wrapped
            )


def _plain(value: object) -> object:
    """As JSON has it, from which adapters' settings come."""
    return list(value) if isinstance(value, tuple) else value


def _said(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
