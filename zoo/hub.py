"""Repositories on the Hugging Face hub: only the files that are needed, nothing that could run.

Files are kept in huggingface_hub's own cache. HF_HUB_OFFLINE=1 never asks the network; a repository without network is
taken from the cache as well.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zoo import published
from zoo.published import INDEX

WORDS = (".json", ".txt", ".model")  # configs and vocabularies
CHECKER = ("safety_checker", "feature_extractor")
WATERMARK = "watermarker"  # DeepFloyd IF's, which is not read
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")

FOLDER = "is neither a folder here nor a hub repository that can be fetched"

FoundT = TypeVar("FoundT")


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    safety_checker: bool = False,
    without: Sequence[str] = (),
) -> Path:
    """The folder of a repository `owner/name`, at a branch, tag or commit: fetched once, then kept.

    Of a published checkpoint these are the configs, the tokenizer and one set of weights: those of `variant` where
    there are any, safetensors rather than pickles. without: parts, by their folders, that are not needed.

    Raises:
        ValueError: there is no such repository or revision, or it cannot be had; the reason is told.
    """
    return fetch_chosen(
        repository, lambda names: needed(names, variant, safety_checker, without), revision=revision, otherwise=FOLDER
    )


def fetch_chosen(
    repository: str,
    choose: Callable[[Sequence[str]], Sequence[str]],
    *,
    revision: str | None = None,
    otherwise: str,
) -> Path:
    """The folder of a repository with those of its files that `choose` takes of their names; without network, or where
    it takes none, what is kept of it.

    Raises:
        ValueError: as `asked`, or as `choose` does.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    def there() -> list[str]:
        return list(HfApi().list_repo_files(repository, revision=revision))

    listed = [] if constants.HF_HUB_OFFLINE else asked(repository, there, fallback=[], otherwise=otherwise)
    patterns = [glob.escape(name) for name in (choose(listed) if listed else ())] or None

    def fetched() -> Path:
        if patterns is None:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))

    return asked(repository, fetched, otherwise=otherwise)


def needed(
    names: Sequence[str], variant: str | None = None, safety_checker: bool = False, without: Sequence[str] = ()
) -> list[str]:
    """Of a repository's files, those that loading it takes.

    Raises:
        ValueError: a part has no weights of a kind that can be read.
    """
    if INDEX not in names:
        return sorted(name for name in names if name.endswith((".safetensors", *WORDS)) or name == "README.md")
    aside = {WATERMARK, *without, *(() if safety_checker else CHECKER)}
    parts: dict[str, list[str]] = {}
    for name in names:
        part, _, inner = name.partition("/")
        if inner and "/" not in inner and part not in aside:
            parts.setdefault(part, []).append(inner)
    wanted = [INDEX]
    for part, there in parts.items():
        if not any(name.endswith(WORDS) for name in there):
            continue
        chosen = [name for name in there if name.endswith(WORDS) and ".index." not in name]
        if any(name.endswith((".safetensors", ".bin")) for name in there):
            chosen += published.choose(there, variant, part)
        wanted += [f"{part}/{name}" for name in chosen]
    return sorted(wanted)


def fetch_tokenizer(repository: str) -> Path:
    """The folder of a repository's tokenizer alone.

    Raises:
        ValueError: it cannot be had; the reason is told.
    """
    from huggingface_hub import snapshot_download

    return asked(repository, lambda: Path(snapshot_download(repository, allow_patterns=list(TOKENIZER))))


def asked(
    repository: str,
    ask: Callable[[], FoundT],
    fallback: Any = None,
    *,
    otherwise: str = FOLDER,
) -> FoundT:
    """What `ask` brings from a repository, or does with it.

    fallback: what stands in where the hub cannot be asked, as without network; not for a repository that is not there.

    Raises:
        ValueError: the hub, or the way to it, refuses: the repository, `otherwise`, and the reason are told.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return ask()
    except Exception as error:  # the client's transport has errors of its own, which change with its versions
        unknown = isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError))
        if fallback is not None and not unknown:  # no network: perhaps it is kept here
            return fallback
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{repository!r} {otherwise}: {reason}") from error
