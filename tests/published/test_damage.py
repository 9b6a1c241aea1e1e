"""Damaged and hostile files: every one ends in a ValueError that names it, none is run, none leaves anything behind."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo import registry
from zoo.stable_diffusion.pretrained import load_decoder

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"
Damage = Callable[[Path, random.Random], None]


class Hostile:
    """What a pickle runs when it is read by the usual `pickle.load`."""

    def __init__(self, marker: Path, how: Callable[..., object]) -> None:
        self.marker, self.how = marker, how

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        if self.how is exec:
            return exec, (f"open({str(self.marker)!r}, 'w').close()",)
        if self.how is os.system:
            return os.system, (f"touch {self.marker}",)
        return self.how, (str(self.marker),)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, header: dict[str, Any] | bytes, payload: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + payload)


def truncated(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(len(data))])


def flipped_header(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    data[8 + chance.randrange(length)] ^= 1 << chance.randrange(7)
    path.write_bytes(bytes(data))


def wrong_length(path: Path, chance: random.Random) -> None:
    header, payload = parts(path)
    put(path, header, payload, chance.choice([0, 1, 7, 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001, len(payload)]))


def other_type(path: Path, chance: random.Random) -> None:
    header, payload = parts(path)
    header[chance.choice(list(header))]["dtype"] = chance.choice(["I32", "U32", "F16", "F64", "BOOL", "X9"])
    put(path, header, payload)


def other_shape(path: Path, chance: random.Random) -> None:
    header, payload = parts(path)
    name = chance.choice([name for name in header if header[name]["shape"] != header[name]["shape"][::-1]])
    header[name]["shape"] = chance.choice([header[name]["shape"][::-1], [2**62, 4], [-1], [0]])
    put(path, header, payload)


def missing(path: Path, chance: random.Random) -> None:
    state = load_file(path)
    del state[chance.choice(list(state))]
    save_file(state, path)


def extra(path: Path, chance: random.Random) -> None:
    state = load_file(path)
    name = chance.choice(["../../evil", "encoder.conv_in.weights", "x", "/etc/passwd", "decoder.conv_in.bias.weight"])
    save_file({**state, name: torch.ones(2)}, path)


def doubled(path: Path, chance: random.Random) -> None:
    header, payload = parts(path)
    name = chance.choice(list(header))
    again = json.dumps({name: header[name]})[1:-1]
    put(path, (json.dumps(header)[:-1] + ", " + again + "}").encode(), payload)


def two_spellings(path: Path, chance: random.Random) -> None:
    state = load_file(path)
    name = chance.choice([name for name in state if ".query." in name])
    save_file({**state, name.replace(".query.", ".to_q."): state[name].clone()}, path)


def not_finite(path: Path, chance: random.Random) -> None:
    state = load_file(path)
    tensor = state[chance.choice(list(state))].view(-1)
    tensor[chance.randrange(len(tensor))] = chance.choice([float("nan"), float("inf"), float("-inf")])
    save_file(state, path)


def overlapping(path: Path, chance: random.Random) -> None:
    header, payload = parts(path)
    first, second = chance.sample(list(header), 2)
    header[first]["data_offsets"] = header[second]["data_offsets"]
    put(path, header, payload)


def longer(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes() + b"x" * chance.randrange(1, 99))


def link_outside(path: Path, chance: random.Random) -> None:
    elsewhere = path.parents[2] / f"elsewhere-{chance.random()}"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def directory(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def no_file(path: Path, chance: random.Random) -> None:
    path.unlink()


def as_pickle(path: Path, saved: object) -> None:
    path.unlink()
    torch.save(saved, path.with_name(PICKLE))


def truncated_pickle(path: Path, chance: random.Random) -> None:
    as_pickle(path, load_file(path))
    truncated(path.with_name(PICKLE), chance)


def odd_pickle(path: Path, chance: random.Random) -> None:
    state: dict[str, Any] = load_file(path)
    name = chance.choice(list(state))
    odd: list[object] = [
        *([], {}, 3, "text", {"state_dict": 5}, {**state, name: torch.ones(3, 2).to_sparse()}),
        *({**state, name: state[name][None]}, {**state, name: state[name].long()}, {**state, name: 1.0}),
        {**state, name: torch.ones(1).expand(10**12)},
    ]
    as_pickle(path, chance.choice(odd))


def bytes_for_pickle(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.with_name(PICKLE).write_bytes(chance.randbytes(chance.randrange(500)))


SAFETENSORS: dict[Damage, int] = {
    truncated: 25,
    flipped_header: 60,
    wrong_length: 9,
    other_type: 15,
    other_shape: 10,
    missing: 12,
    extra: 8,
    doubled: 10,
    two_spellings: 3,
    not_finite: 20,
    overlapping: 6,
    longer: 4,
    link_outside: 2,
    directory: 1,
    no_file: 1,
    truncated_pickle: 12,
    odd_pickle: 14,
    bytes_for_pickle: 8,
}


@pytest.fixture
def folder(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(checkpoints["sd15"].folder, tmp_path / "model"))
    path = copy / "vae" / WEIGHTS
    save_file(load_file(path), path)  # without notes in the header, where a changed letter would change nothing
    return copy


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def check(read: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (what it says is looked at below)
        read()
    message = str(caught.value)
    assert named in message
    assert len(message) > len(named) + 20


@pytest.mark.parametrize(("damage", "times"), SAFETENSORS.items(), ids=lambda value: getattr(value, "__name__", None))
def test_damaged_weights(damage: Damage, times: int, folder: Path) -> None:
    whole = folder / "vae"
    load_decoder(whole)
    for seed in range(times):
        vae = Path(shutil.copytree(whole, folder.parent / f"{damage.__name__}-{seed}" / "vae"))
        damage(vae / WEIGHTS, random.Random(seed))
        there = everything(vae)
        check(lambda vae=vae: load_decoder(vae), str(vae))  # type: ignore[misc]
        assert everything(vae) == there
        shutil.rmtree(vae.parent)


def test_there_are_two_hundred_of_them() -> None:
    assert sum(SAFETENSORS.values()) >= 200


@pytest.mark.parametrize("how", [os.system, exec, eval, os.remove, os.mkdir, open])
@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_hostile_pickles_are_not_run(how: Callable[..., object], kind: str, folder: Path) -> None:
    marker = folder.parent / "marker"
    if how is os.remove:
        marker.touch()
    before = marker.exists()
    path = folder / "vae" / PICKLE
    state: dict[str, Any] = {**load_file(folder / "vae" / WEIGHTS), "payload": Hostile(marker, how)}
    (folder / "vae" / WEIGHTS).unlink()
    if kind == "torch":
        torch.save({"state_dict": state}, path)
    else:
        path.write_bytes(pickle.dumps(state))
    check(lambda: zoo.load(folder, device="cpu"), str(path))
    check(lambda: load_decoder(folder / "vae"), "Nothing in it was run")
    single = folder / "whole.ckpt"
    shutil.move(path, single)
    check(lambda: zoo.load(single, device="cpu"), str(single))
    assert marker.exists() == before


CONFIGS: list[tuple[str, str, object]] = [
    ("vae/config.json", "block_out_channels", 5),
    ("vae/config.json", "block_out_channels", [16, 16, "x", 32]),
    ("vae/config.json", "layers_per_block", 10**9),
    ("vae/config.json", "layers_per_block", -1),
    ("vae/config.json", "latent_channels", 0),
    ("vae/config.json", "norm_num_groups", 0),
    ("vae/config.json", "act_fn", "gelu"),
    ("unet/config.json", "block_out_channels", [10**12, 64]),
    ("unet/config.json", "attention_head_dim", "four"),
    ("unet/config.json", "cross_attention_dim", 48),
    ("unet/config.json", "in_channels", 7),
    ("unet/config.json", "transformer_layers_per_block", 10**7),
    ("unet/config.json", "sample_size", "large"),
    ("unet/config.json", "down_block_types", None),
    ("unet/config.json", "an_option_of_tomorrow", 1),
    ("text_encoder/config.json", "hidden_size", 33),
    ("text_encoder/config.json", "num_hidden_layers", 10**8),
    ("text_encoder/config.json", "max_position_embeddings", "many"),
    ("text_encoder/config.json", "hidden_act", "no_such"),
    ("text_encoder/config.json", "use_attention_mask", True),
    ("scheduler/scheduler_config.json", "beta_start", "small"),
    ("scheduler/scheduler_config.json", "beta_end", 2.0),
    ("scheduler/scheduler_config.json", "num_train_timesteps", -3),
    ("scheduler/scheduler_config.json", "steps", 3),
    ("model_index.json", "_class_name", "StableDiffusionXLPipeline"),
    ("model_index.json", "vae", ["diffusers", "VQModel"]),
    ("model_index.json", "text_encoder", ["os", "system"]),
    ("model_index.json", "tokenizer", ["os", "system"]),
    ("model_index.json", "scheduler", ["diffusers", "NoSuchScheduler"]),
    ("model_index.json", "unet", None),
    ("model_index.json", "controlnet", ["diffusers", "ControlNetModel"]),
    ("tokenizer/vocab.json", "a", 5.5),
]


@pytest.mark.parametrize(("file", "option", "value"), CONFIGS)
def test_configs_that_cannot_be(file: str, option: str, value: object, folder: Path) -> None:
    path = folder / file
    said = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**said, option: value}), "utf-8")
    part = file.rpartition("/")[0]  # what model_index.json says may be refused where it is used
    check(lambda: zoo.load(folder, device="cpu"), str(folder / part))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"a": 1, "a": 2}',
        '{"a": NaN}',
        "[" * 100_000,
        '{"a": "' + "x" * 5_000_000 + '"}',
        "\xff\xfe",
    ],
    ids=["empty", "open", "list", "number", "twice", "nan", "deep", "long", "not-utf8"],
)
@pytest.mark.parametrize(
    "file",
    ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"],
)
def test_configs_that_are_no_json(file: str, text: str, folder: Path) -> None:
    (folder / file).write_bytes(text.encode("latin-1"))
    check(lambda: zoo.load(folder, device="cpu"), str(folder / file))


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_damaged_vocabularies(file: str, folder: Path) -> None:
    path = folder / "tokenizer" / file
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x00\x01{", b'{"a": "b"}'):
        if file == "merges.txt" and damaged in (b"", whole[: len(whole) // 2]):
            continue  # fewer merges are a vocabulary too
        path.write_bytes(damaged)
        check(lambda: zoo.load(folder, device="cpu"), str(folder / "tokenizer"))
    path.unlink()
    check(lambda: zoo.load(folder, device="cpu"), f"{folder / 'tokenizer'} holds no CLIPTokenizer")


@pytest.mark.parametrize("file", ["unet/config.json", "vae", "tokenizer/vocab.json", "model_index.json"])
def test_links_out_of_the_folder(file: str, folder: Path) -> None:
    path, elsewhere = folder / file, folder.parent / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    check(lambda: zoo.load(folder, device="cpu"), "outside")


def test_links_within_the_folder_and_the_hubs_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    path = folder / "vae" / WEIGHTS
    shutil.move(path, folder / "vae.data")
    path.symlink_to(Path("..") / "vae.data")
    zoo.load(folder, device="cpu")
    repository = tmp_path / "models--someone--model"
    (repository / "blobs").mkdir(parents=True)
    snapshot = Path(shutil.copytree(folder, repository / "snapshots" / "0123", symlinks=True))
    shutil.move(snapshot / "vae.data", repository / "blobs" / "4567")
    (snapshot / "vae" / WEIGHTS).unlink()
    (snapshot / "vae" / WEIGHTS).symlink_to(Path("..") / ".." / ".." / "blobs" / "4567")
    zoo.load(snapshot, device="cpu")


def test_changed_numbers_where_the_sum_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import tensors

    path = folder / "unet" / WEIGHTS
    entry = registry.Published("someone/model", "", 1.0, "none", sha256={f"unet/{WEIGHTS}": tensors.sha256(path)})
    monkeypatch.setitem(registry.PUBLISHED, "pinned", entry)
    monkeypatch.setattr("zoo.hub.fetch", lambda repository, **_: folder)
    assert zoo.load("pinned", device="cpu").name == "model"
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(20):
        data = bytearray(whole)
        data[chance.randrange(len(data) // 2, len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(data))
        check(lambda: registry.find("pinned"), f"{path} is not what was published")


PARTS = {"text_encoder": "model.safetensors", "vae": WEIGHTS, "unet": WEIGHTS}


@pytest.mark.parametrize("part", PARTS)
def test_numbers_that_are_cast_are_looked_at_by_loading(part: str, folder: Path) -> None:
    path = folder / part / PARTS[part]
    whole = load_file(path)
    name = next(name for name, tensor in whole.items() if tensor.is_floating_point())
    for value, told in ((float("nan"), "not finite (1): "), (1e5, "numbers too large for torch.float16: ")):
        save_file({**whole, name: torch.full_like(whole[name], value)}, path)
        check(lambda: zoo.load(folder, device="cpu", dtype=torch.float16), f"{folder / part}")
        with pytest.raises(ValueError, match=re.escape(told)):
            zoo.load(folder, device="cpu", dtype=torch.float16)
    assert zoo.load(folder, device="cpu", dtype=torch.bfloat16), "which has room for them"


@pytest.mark.parametrize("part", PARTS)
def test_half_precision_that_is_only_mapped_is_looked_at_by_the_first_call(part: str, folder: Path) -> None:
    for one, name in PARTS.items():
        path = folder / one / name
        save_file({n: t.half() if t.is_floating_point() else t for n, t in load_file(path).items()}, path)
    not_finite(folder / part / PARTS[part], random.Random(0))
    pipe = zoo.load(folder, device="cpu", dtype=torch.float16)
    check(pipe.check_weights, f"{folder / part} holds NaN or infinity (1): ")


def test_numbers_that_are_only_mapped_are_looked_at_by_the_first_call(folder: Path) -> None:
    not_finite(folder / "unet" / WEIGHTS, random.Random(0))
    pipe = zoo.load(folder, device="cpu")
    for _ in range(2):
        check(lambda: pipe("a", n=1, steps=1, progress=False), f"{folder / 'unet'} holds NaN or infinity (1): ")
