"""Names to models: the shipped ones, published ones that are fetched, any folder or file, or a hub repository.

Shipped models lie in `weights/` of a source checkout and in `zoo/_weights` of an installed package. The environment
variable ZOO_MODELS may name further folders of models (separated as in PATH), which are looked at first; they may hold
published checkpoints in the diffusers layout as well.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONFIG, INDEX = "config.json", "model_index.json"  # of our own folders, and of published ones
HERE = Path(__file__).parent
SUFFIXES = (".safetensors", ".ckpt")  # of files that hold a whole model
CLIP = "clip-small"  # the zoo's own, by which pictures are scored
CLIP_TOKENIZER = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Published:
    """A published checkpoint that has a name here. `sha256` pins its weights, whatever the repository's history."""

    repository: str
    summary: str
    gigabytes: float  # of the files that are fetched
    licence: str
    languages: tuple[str, ...] = ("en",)
    sha256: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # parts that are not fetched, being another checkpoint's too


def _weights(unet: str, text_encoder: str, vae: str, variant: str = "") -> dict[str, str]:
    """The SHA-256 of the weights of a published Stable Diffusion."""
    return {
        f"unet/diffusion_pytorch_model{variant}.safetensors": unet,
        f"text_encoder/model{variant}.safetensors": text_encoder,
        f"vae/diffusion_pytorch_model{variant}.safetensors": vae,
    }


PUBLISHED = {
    "stable-diffusion-v1-5": Published(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5: 860M parameters, 512x512.",
        4.3,
        "creativeml-openrail-m",
        sha256=_weights(
            "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
            "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
            "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
        )
        | _weights(
            "c83908253f9a64d08c25fc90874c9c8aef9a329ce1ca5fb909d73b0c83d1ea21",
            "77795e2023adcf39bc29a884661950380bd093cf0750a966d473d1718dc9ef4e",
            "4fbcf0ebe55a0984f5a5e00d8c4521d52359af7229bb4d81890039d2aa16dd7c",
            ".fp16",
        ),
    ),
    "stable-diffusion-2-1": Published(
        "stabilityai/stable-diffusion-2-1",
        "Stable Diffusion 2.1: 866M parameters, 768x768, predicts v.",
        5.2,
        "openrail++",
        sha256=_weights(
            "1238522277c48923ff2751e238f2742c562e45643f3d50cc93d163cb30638b0c",
            "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
            "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
        ),
    ),
    "taiyi-zh": Published(
        "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Chinese-v0.1",
        "Taiyi: Stable Diffusion 1.4 with a Chinese text encoder (BERT).",
        4.2,
        "creativeml-openrail-m",
        ("zh",),
    ),
    "taiyi-anime-zh": Published(
        "IDEA-CCNL/Taiyi-Stable-Diffusion-1B-Anime-Chinese-v0.1",
        "Taiyi for anime: Stable Diffusion 1 with a Chinese text encoder (BERT).",
        4.2,
        "creativeml-openrail-m",
        ("zh",),
    ),
    "if-m": Published(
        "DeepFloyd/IF-I-M-v1.0",
        "DeepFloyd IF, stage I, the smallest: 372M parameters and T5-XXL, 64x64.",
        20.5,
        "deepfloyd-if-license",
    ),
    "if-l": Published(
        "DeepFloyd/IF-I-L-v1.0",
        "DeepFloyd IF, stage I: 935M parameters and T5-XXL, 64x64.",
        22.8,
        "deepfloyd-if-license",
    ),
    "if-xl": Published(
        "DeepFloyd/IF-I-XL-v1.0",
        "DeepFloyd IF, stage I, the largest: 4.3B parameters and T5-XXL, 64x64.",
        36.3,
        "deepfloyd-if-license",
        sha256={
            "unet/diffusion_pytorch_model.safetensors": (
                "d478fe3f64e368cd58201e8a6dd5c94264cfe85249125196a2f3b43d90a8d706"
            )
        },
    ),
    "if-ii-l": Published(
        "DeepFloyd/IF-II-L-v1.0",
        'DeepFloyd IF, stage II, as decoder="if-ii-l/decoder": 1.2B parameters, from 64x64 to 256x256.',
        5.0,
        "deepfloyd-if-license",
        without=("text_encoder", "tokenizer"),
    ),
    "karlo": Published(
        "kakaobrain/karlo-v1-alpha",
        "Karlo v1 alpha, an unCLIP (DALL-E 2): prior, decoder and upsampler, 3.3B parameters, 256x256.",
        13.7,
        "creativeml-openrail-m",
    ),
}


def shelves() -> list[Path]:
    """The folders that hold model folders, in the order in which they are searched."""
    named = [Path(entry) for entry in os.environ.get("ZOO_MODELS", "").split(os.pathsep) if entry]
    return [path for path in (*named, HERE.parent / "weights", HERE / "_weights") if path.is_dir()]


def models() -> dict[str, Path]:
    """Every model by its name, which is its folder's name."""
    found: dict[str, Path] = {}
    for shelf in shelves():
        for config in sorted([*shelf.glob(f"*/{CONFIG}"), *shelf.glob(f"*/{INDEX}")]):
            if config.name == INDEX or _is_model(config):
                found.setdefault(config.parent.name, config.parent)
    return found


def _is_own(folder: Path) -> bool:
    """Whether a folder is a model as this library writes it, and no published checkpoint."""
    return (folder / CONFIG).is_file() and not (folder / INDEX).is_file()


def _is_model(config: Path) -> bool:
    """Whether it is a model's config: shelves also hold single parts that models share, under configs of their own."""
    try:
        said = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # a damaged model is listed, and loading it says what is wrong
    return not isinstance(said, dict) or "format" in said


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models at hand that match a wildcard pattern, sorted: `list_models("*small*")`."""
    return sorted(fnmatch.filter(models(), pattern))


def list_published(pattern: str = "*") -> list[str]:
    """Names of the published checkpoints that are fetched when they are loaded, without those at hand."""
    return sorted(fnmatch.filter(PUBLISHED.keys() - models().keys(), pattern))


def list_adapters(model: str) -> list[str]:
    """Names of the adapters that come with a model at hand, by its name or folder; none where there is nothing.

    Raises:
        ValueError: the model's config is not valid.
    """
    from zoo import config

    folder = models().get(model, Path(model))
    return list(config.read(folder).adapters) if _is_own(folder) else []


def describe(name: str) -> str:
    """A line on a model that `list_models` or `list_published` names."""
    from zoo import config

    at_hand = models().get(name)
    if at_hand is not None and not (at_hand / INDEX).is_file():
        said = config.read(at_hand)
        return said.summary + (f" (adapters: {', '.join(said.adapters)})" if said.adapters else "")
    if name not in PUBLISHED:
        return "A published checkpoint."
    entry = PUBLISHED[name]
    where = "" if at_hand or _cached(entry.repository) else f"needs download, {entry.gigabytes:g} GB; "
    return f"{entry.summary} ({where}licence {entry.licence})"


def find(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    safety_checker: bool = False,
) -> Path:
    """A model's folder or file, given its name, its path, or a hub id `owner/name` (fetched once, then kept).

    What is no text, such as a `Path`, is a path and no name: names come first where a text may be either.

    revision, variant, safety_checker: of what is fetched, see `zoo.hub.fetch`.

    Raises:
        ValueError: there is no such model, with the nearest names; or what was fetched is not what was published.
    """
    name = os.fspath(name_or_path)
    if not name:
        raise ValueError(f"a model's name is needed, one of: {', '.join(list_models())}")
    known = models()
    if is_fetched(name_or_path):
        if name in PUBLISHED:
            return _fetch_published(PUBLISHED[name], revision, variant, safety_checker)
        from zoo import hub

        return hub.fetch(name, revision=revision, variant=variant, safety_checker=safety_checker)
    if isinstance(name_or_path, str) and name in known:
        return known[name]
    if _is_place(Path(name)):
        return Path(name)
    if not isinstance(name_or_path, str):
        kinds = ", ".join(SUFFIXES)
        raise ValueError(f"there is no model at {name!r}, as a folder or a file ({kinds}); names are given as str")
    lower = {known_name.lower(): known_name for known_name in [*known, *PUBLISHED]}
    near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(known)) or 'none'}."
    raise ValueError(
        f"unknown model {name!r}: {hint} A folder, a hub id (owner/name) or a file ({', '.join(SUFFIXES)}) works too."
    )


def is_fetched(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether `find` asks the hub for it: a published name or a hub id, where no model at hand or path is called so."""
    if not isinstance(name_or_path, str) or name_or_path in models():
        return False
    hub_id = name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~"))
    return name_or_path in PUBLISHED or (hub_id and not _is_place(Path(name_or_path)))


def _is_place(path: Path) -> bool:
    """Whether a model may be read from there: a folder, or a file that may hold one."""
    return path.is_dir() or (path.is_file() and path.suffix in SUFFIXES)


def can_edit(folder: Path) -> bool:
    """Whether the model there comes with the CLIP in whose embeddings `zoo.dalle2.edit` changes pictures.

    Published checkpoints bring none.

    Raises:
        ValueError: the model's config is not valid.
    """
    from zoo import config

    return _is_own(folder) and config.read(folder).image_encoder is not None


def clip() -> Path:
    """The folder of the zoo's own CLIP, both towers of it.

    Raises:
        ValueError: it is not at hand.
    """
    for shelf in shelves():
        if (shelf / CLIP / CONFIG).is_file():
            return shelf / CLIP
    raise ValueError(f"the zoo's CLIP, {CLIP}, which scores pictures, is on none of the shelves of models")


def clip_tokenizer() -> Path:
    """The folder of CLIP's tokenizer, for files that hold a model without it.

    Raises:
        ValueError: it is not kept here and cannot be fetched.
    """
    from zoo import hub

    return hub.fetch_tokenizer(CLIP_TOKENIZER)


def _cached(repository: str) -> bool:
    """Whether something of a hub repository is kept here; asks without importing torch."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, INDEX), str)


def _fetch_published(entry: Published, revision: str | None, variant: str | None, safety_checker: bool) -> Path:
    from zoo import hub, tensors

    how = {"revision": revision, "variant": variant}
    folder = hub.fetch(entry.repository, **how, safety_checker=safety_checker, without=entry.without)
    for name, expected in entry.sha256.items():
        path = folder / name
        if revision is None and path.is_file() and (found := tensors.sha256(path)) != expected:
            raise ValueError(
                f"{path} is not what was published as {entry.repository}: its SHA-256 is {found}, expected {expected}. "
                "Delete it and load again, or pass revision= to take another version"
            )
    return folder


def card(name_or_path: str | os.PathLike[str]) -> str:
    """The model card in Markdown: what the model is, how to use it, how it was trained and what it scores.

    Raises:
        ValueError: there is no such model.
    """
    from zoo import config, model_card

    name = os.fspath(name_or_path)
    if name in PUBLISHED and is_fetched(name_or_path):
        return f"# {name}\n\n{describe(name)}\n\nPublished at https://huggingface.co/{PUBLISHED[name].repository}\n"
    folder = find(name_or_path)
    if (folder / INDEX).is_file():
        readme = folder / "README.md"
        return readme.read_text("utf-8") if readme.is_file() else f"# {folder.name}\n\nA published checkpoint.\n"
    return model_card.render(config.read(folder))
