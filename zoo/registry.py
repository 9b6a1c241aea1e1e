"""Names to model folders: the shipped models, any folder, or a repository on the Hugging Face hub.

Shipped models lie in `weights/` of a source checkout and in `zoo/_weights` of an installed package. The environment
variable ZOO_MODELS may name further folders of models (separated as in PATH), which are looked at first.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
from pathlib import Path

CONFIG = "config.json"
HERE = Path(__file__).parent


def shelves() -> list[Path]:
    """The folders that hold model folders, in the order in which they are searched."""
    named = [Path(entry) for entry in os.environ.get("ZOO_MODELS", "").split(os.pathsep) if entry]
    return [path for path in (*named, HERE.parent / "weights", HERE / "_weights") if path.is_dir()]


def models() -> dict[str, Path]:
    """Every model by its name, which is its folder's name."""
    found: dict[str, Path] = {}
    for shelf in shelves():
        for config in sorted(shelf.glob(f"*/{CONFIG}")):
            if _is_model(config):
                found.setdefault(config.parent.name, config.parent)
    return found


def _is_model(config: Path) -> bool:
    """Whether it is a model's config: shelves also hold single parts that models share, under configs of their own."""
    try:
        return "format" in json.loads(config.read_bytes())
    except (OSError, ValueError):
        return True  # a damaged model is listed, and loading it says what is wrong


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models at hand that match a wildcard pattern, sorted: `list_models("*small*")`."""
    return sorted(fnmatch.filter(models(), pattern))


def find(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model, given its name, its folder, or a hub id `owner/name` (fetched once, then kept).

    Raises:
        ValueError: there is no such model; the message offers the nearest names.
    """
    name = os.fspath(name_or_path)
    if not name:
        raise ValueError(f"a model's name is needed, one of: {', '.join(list_models())}")
    known = models()
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name_or_path, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _fetch(name)
    lower = {known_name.lower(): known_name for known_name in known}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(known)) or 'none'}."
    raise ValueError(f"unknown model {name!r}: {hint} A folder or a hub id (owner/name) works too.")


def card(name_or_path: str | os.PathLike[str]) -> str:
    """The model card in Markdown: what the model is, how to use it, how it was trained and what it scores.

    Raises:
        ValueError: there is no such model.
    """
    from zoo import config, model_card

    return model_card.render(config.read(find(name_or_path)))


def _fetch(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Nothing that could be unpickled or run is ever fetched.
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "README.md"]
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{repository!r} is neither a folder here nor a hub repository that can be fetched: {reason}"
        ) from error
