"""Hub ids without a network: huggingface_hub's own cache, laid out in a temporary folder, and a hub that only lists."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub.errors import RevisionNotFoundError

import zoo
from zoo import hub, registry

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

COMMITS = {"main": "a" * 40, "tuned": "b" * 40}
REPOSITORY = "someone/model"


def keep(cache: Path, repository: str, source: Path, revision: str) -> Path:
    """A repository in the cache, as downloads leave it: blobs by their sums, a snapshot of links to them."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMITS[revision]
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(COMMITS[revision])
    for path in sorted(source.rglob("*")):
        if path.is_file():
            link = snapshot / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, value in {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    return tmp_path


def test_offline_it_is_taken_from_the_cache(checkpoints: dict[str, Checkpoint], cache: Path) -> None:
    snapshot = keep(cache, REPOSITORY, checkpoints["sd15"].folder, "main")
    tuned = keep(cache, REPOSITORY, checkpoints["sd21"].folder, "tuned")
    assert registry.find(REPOSITORY) == snapshot
    assert zoo.load(REPOSITORY, device="cpu").defaults.sampler == "plms"
    for revision in ("tuned", COMMITS["tuned"]):
        assert registry.find(REPOSITORY, revision=revision) == tuned
        assert zoo.load(REPOSITORY, device="cpu", revision=revision).defaults.sampler == "ddim"
    with pytest.raises(ValueError, match="'someone/model' is neither a folder here nor a hub repository"):
        zoo.load(REPOSITORY, revision="unknown")
    with pytest.raises(ValueError, match="'someone/other' is neither a folder here"):
        zoo.load("someone/other")


def test_links_in_the_cache_may_not_leave_it(checkpoints: dict[str, Checkpoint], cache: Path) -> None:
    snapshot = keep(cache, REPOSITORY, checkpoints["sd15"].folder, "main")
    weights = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    outside = Path(shutil.copy(weights, cache / "outside"))
    weights.unlink()
    weights.symlink_to(outside)
    with pytest.raises(ValueError, match=r"is a link to .*outside"):
        zoo.load(REPOSITORY, device="cpu")


def test_published_names_are_repositories(checkpoints: dict[str, Checkpoint], cache: Path) -> None:
    listed = registry.list_published()
    assert {"stable-diffusion-v1-5", "stable-diffusion-2-1", "taiyi-zh", "taiyi-anime-zh"} <= set(listed)
    assert registry.list_published("taiyi*") == ["taiyi-anime-zh", "taiyi-zh"]
    assert not set(listed) & set(zoo.list_models())
    assert "needs download, 4.2 GB; licence creativeml-openrail-m" in registry.describe("taiyi-zh")
    keep(cache, registry.PUBLISHED["taiyi-zh"].repository, checkpoints["taiyi"].folder, "main")
    assert "needs download" not in registry.describe("taiyi-zh")
    assert zoo.load("taiyi-zh", device="cpu").text_encoder.produces.length == 512
    assert "IDEA-CCNL" in zoo.card("taiyi-zh")
    with pytest.raises(ValueError, match="did you mean 'taiyi-zh'"):
        zoo.load("taiyi-hz")


def test_what_was_not_published_under_a_name_is_refused(checkpoints: dict[str, Checkpoint], cache: Path) -> None:
    keep(cache, registry.PUBLISHED["stable-diffusion-v1-5"].repository, checkpoints["sd15"].folder, "main")
    with pytest.raises(ValueError, match=r"is not what was published as stable-diffusion-v1-5/.*SHA-256"):
        zoo.load("stable-diffusion-v1-5")


FILES = [
    *("model_index.json", "README.md", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "v1-inference.yaml"),
    *("unet/config.json", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors"),
    *("vae/config.json", "vae/diffusion_pytorch_model.bin", "scheduler/scheduler_config.json"),
    *("text_encoder/config.json", "text_encoder/model.safetensors.index.json"),
    *(f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    *("text_encoder/pytorch_model.bin", "text_encoder/run.py"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
    *("safety_checker/config.json", "safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json"),
]
KEPT = {
    *("model_index.json", "unet/config.json", "vae/config.json", "vae/diffusion_pytorch_model.bin"),
    *("scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors.index.json"),
    *(f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json"),
}


def test_only_what_is_needed_is_fetched() -> None:
    plain = "unet/diffusion_pytorch_model.safetensors"
    assert set(hub.needed(FILES)) == KEPT | {plain}
    assert set(hub.needed(FILES, "fp16")) == KEPT | {"unet/diffusion_pytorch_model.fp16.safetensors"}
    checked = {"safety_checker/config.json", "safety_checker/model.safetensors"}
    checked |= {"feature_extractor/preprocessor_config.json"}
    assert set(hub.needed(FILES, safety_checker=True)) == KEPT | {plain} | checked
    watermarked = [*FILES, "watermarker/config.json", "watermarker/diffusion_pytorch_model.bin"]
    assert set(hub.needed(watermarked)) == KEPT | {plain}
    told = {name for name in KEPT if not name.startswith(("text_encoder", "tokenizer"))}
    assert set(hub.needed(FILES, without=("text_encoder", "tokenizer"))) == told | {plain}
    own = ["config.json", "unet/model.safetensors", "x.bin", "y.py", "z.ckpt", "README.md", "tokenizer/t.model"]
    assert set(hub.needed(own)) == {"config.json", "unet/model.safetensors", "README.md", "tokenizer/t.model"}
    with pytest.raises(ValueError, match="vae holds no weights"):
        hub.needed([name for name in FILES if name != "vae/diffusion_pytorch_model.bin"] + ["vae/x.safetensors"])


def test_a_hub_is_asked_for_those_files_alone(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    folder = checkpoints["sd15"].folder

    class Api:
        def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
            asked.update(listed=(repository, revision))
            return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()] + ["evil.py"]

    def download(repository: str, **how: Any) -> str:
        asked.update(repository=repository, **how)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    zoo.load(REPOSITORY, device="cpu", revision="tuned")
    assert asked["listed"] == (REPOSITORY, "tuned")
    assert (asked["repository"], asked["revision"]) == (REPOSITORY, "tuned")
    assert "unet/diffusion_pytorch_model.safetensors" in asked["allow_patterns"]
    assert not [name for name in asked["allow_patterns"] if name.endswith((".py", ".bin", ".ckpt"))]


class TransportError(Exception):
    """What a client of the hub raises where there is no network: a class of whatever it is built on, httpx today."""


class NoRevisionError(RevisionNotFoundError):
    """The hub's answer, without the response that it comes from."""

    def __init__(self, said: str) -> None:
        Exception.__init__(self, said)


def test_a_revision_that_is_not_there_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
            raise NoRevisionError("Revision Not Found: tunned")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(ValueError, match="can be fetched: Revision Not Found: tunned"):
        zoo.load(REPOSITORY, device="cpu", revision="tunned")


@pytest.mark.parametrize("kind", [OSError, TransportError])
def test_without_network_what_is_kept_serves(
    checkpoints: dict[str, Checkpoint], cache: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    snapshot = keep(cache, REPOSITORY, checkpoints["sd15"].folder, "main")

    class Api:
        def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
            raise kind("no route to host")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert registry.find(REPOSITORY) == snapshot
    with pytest.raises(ValueError, match="neither a folder here nor a hub repository that can be fetched"):
        registry.find("nobody/has-kept-this")
