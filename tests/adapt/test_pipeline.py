"""Adapters in a pipeline's call: per image, per thread, merged, and from the command line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo
from tests.cli.conftest import Run
from tests.conftest import Lend
from tests.pictures import apart, same
from zoo.adapt.formats import write
from zoo.adapt.lora import LoRA, adaptable
from zoo.adapt.prefix import Prefix
from zoo.pipeline import Pipeline
from zoo.result import Result

PINK, RED = "a large pink butterfly", "a red circle"
FORMATS = {"p1": "kohya", "p2": "diffusers", "p3": "zoo"}
Draw = Callable[..., Result]


@pytest.fixture(scope="module")
def pipe(tiny_models: Path) -> Pipeline:
    return zoo.load(tiny_models / "tiny", device="cpu")


@pytest.fixture(scope="module")
def files(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three LoRAs for text encoder and U-Net, the last for the VAE too, in three layouts."""
    folder = tmp_path_factory.mktemp("loras")
    networks = pipe.adaptable()
    found = {}
    for seed, (name, format) in enumerate(FORMATS.items()):
        source = torch.Generator().manual_seed(seed)
        parts = ["unet", "text_encoder"] + ["vae"] * (name == "p3")
        loras = {}
        for part in parts:
            targets = {"unet": "*", "text_encoder": "*_proj", "vae": "decoder.*"}[part]
            loras[part] = LoRA.build(networks[part].module, [targets], seed=source)
            for layer in loras[part].layers.values():
                layer.up.data = 0.3 * torch.randn(layer.up.shape, generator=source)
        found[name] = folder / f"{name}.safetensors"
        write(found[name], loras, format, networks=networks)  # type: ignore[arg-type]
    return found


@pytest.fixture
def loaded(pipe: Pipeline, files: dict[str, Path], lend: Lend) -> Pipeline:
    for name, path in files.items():
        lend(pipe).load_lora(path, name=name)
    return pipe


@pytest.fixture
def draw(loaded: Pipeline) -> Draw:
    def call(prompts: str | list[str], **settings: object) -> Result:
        return loaded(prompts, **{"progress": False, "steps": 2, **settings})  # type: ignore[arg-type]

    return call


def test_loaded_is_not_chosen(draw: Draw, tiny: Pipeline) -> None:
    plain = tiny(PINK, n=1, steps=2, progress=False)
    assert torch.equal(draw(PINK, n=1).tensor, plain.tensor)
    assert torch.equal(draw(PINK, n=1, adapters={}).tensor, plain.tensor)
    assert torch.equal(draw(PINK, n=1, adapters={"p1": 0.0}).tensor, plain.tensor)
    assert draw(PINK, n=1).settings == plain.settings


@pytest.mark.parametrize("negative", [None, "a green star"])
def test_six_images_with_three_adapters_in_one_batch(draw: Draw, negative: str | None) -> None:
    """Every image as if it were made alone, whatever its neighbours have and however the call is split."""
    choices = [{"p1": 1.0}, {"p2": 0.8}, {"p3": 0.6}, {}, {"p1": 0.5, "p3": 0.4}, {"p2": 1.0}]
    prompts = [PINK, RED, PINK]
    together = draw(prompts, n=2, adapters=choices, guidance=3.0, negative=negative)
    assert together.settings["adapters"] == choices
    assert same(draw(prompts, n=2, adapters=choices, guidance=3.0, negative=negative, batch=4).tensor, together.tensor)
    for i, choice in enumerate(choices):
        alone = draw(together.prompts[i], n=1, seed=together.seeds[i], adapters=choice, guidance=3.0, negative=negative)
        assert same(alone.tensor[0], together.tensor[i])
        assert alone.settings.get("adapters", {}) == choice
    plain = draw(prompts, n=2, guidance=3.0, negative=negative).tensor
    changed = (together.tensor - plain).abs().amax((1, 2, 3)) > 2 / 255
    assert changed.tolist() == [True, True, True, False, True, True]


def test_one_choice_for_each_prompt(draw: Draw) -> None:
    both = draw([PINK, RED], n=2, adapters=[{"p1": 1.0}, {"p2": 1.0}]).tensor
    assert same(both[:2], draw(PINK, n=2, adapters={"p1": 1.0}).tensor)
    assert same(both[2:], draw(RED, n=2, adapters={"p2": 1.0}).tensor)


def test_the_text_encoder_is_adapted_too(draw: Draw, loaded: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    stored = load_file(files["p1"])
    save_file({key: t for key, t in stored.items() if key.startswith("lora_unet_")}, tmp_path / "unet.safetensors")
    loaded.load_lora(tmp_path / "unet.safetensors")
    assert loaded.adapters()["unet"].modules.keys() == {"unet"}
    assert not same(draw(PINK, n=1, adapters={"unet": 1.0}).tensor, draw(PINK, n=1, adapters={"p1": 1.0}).tensor)


def test_four_threads_with_an_adapter_each(draw: Draw) -> None:
    choices = [{"p1": 1.0}, {"p2": 1.0}, {"p3": 1.0}, {}]
    alone = [draw(PINK, n=1, adapters=choice).tensor for choice in choices]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(draw, PINK, n=1, adapters=choice) for choice in choices * 2]
        assert all(same(a, job.result().tensor) for a, job in zip(alone * 2, jobs, strict=True))


def test_merged(draw: Draw, loaded: Pipeline) -> None:
    plain, weights = draw(PINK, n=2), {n: t.clone() for n, t in loaded.generator.state_dict().items()}
    wanted = draw(PINK, n=2, adapters={"p1": 0.8, "p3": -0.5})
    loaded.merge({"p1": 0.8, "p3": -0.5})
    merged = draw(PINK, n=2)
    assert same(merged.tensor, wanted.tensor)
    assert merged.model == "tiny + p1 x 0.8 + p3 x -0.5"
    assert {name: status.merged for name, status in loaded.adapters().items()} == {"p1": 0.8, "p2": None, "p3": -0.5}
    with pytest.raises(ValueError, match="'p1' is merged, so it acts already"):
        draw(PINK, n=1, adapters={"p1": 1.0})
    with pytest.raises(ValueError, match="merged into the weights"):
        loaded.unload("p1")
    assert not same(draw(PINK, n=2, adapters={"p2": 1.0}).tensor, merged.tensor), "others may still be chosen"
    with pytest.raises(ValueError, match="'p3': a strength is a finite number, got nan"):
        loaded.merge({"p1": 1.0, "p3": float("nan")})
    assert same(draw(PINK, n=2).tensor, merged.tensor), "nothing was merged, or unmerged"
    loaded.merge("p2")
    assert [status.merged for status in loaded.adapters().values()] == [None, 1.0, None]
    loaded.unmerge()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.generator.state_dict().items())
    assert torch.equal(draw(PINK, n=2).tensor, plain.tensor)
    assert draw(PINK, n=1).model == "tiny"


def test_status_tells_the_truth(loaded: Pipeline, files: dict[str, Path]) -> None:
    status = loaded.adapters()["p3"]
    stored = load_file(files["p3"])
    assert (status.kind, status.source, status.merged) == ("lora", str(files["p3"]), None)
    assert status.parameters == sum(tensor.numel() for tensor in stored.values())
    assert sum(status.modules.values()) == len(stored) // 2
    assert status.report is not None
    assert status.report.format == "zoo"


def test_prefixes_and_objects(draw: Draw, loaded: Pipeline, tmp_path: Path) -> None:
    network = loaded.adaptable()["unet"].module
    prefix = Prefix.build(network, length=3)
    for layer in prefix.layers.values():
        torch.nn.init.constant_(layer.gate, 1.0)
        torch.nn.init.normal_(layer.pairs)
    prefix.save(tmp_path / "word.safetensors", "unet")
    loaded.load_prefix(tmp_path / "word.safetensors")
    loaded.load_prefix({"unet": prefix}, name="same")
    assert loaded.adapters()["word"].kind == "prefix"
    plain, made = draw(RED, n=2, guidance=3.0), draw(RED, n=2, guidance=3.0, adapters={"word": 1.0})
    assert not same(made.tensor, plain.tensor)
    assert same(draw(RED, n=2, guidance=3.0, adapters={"same": 1.0}).tensor, made.tensor)
    mixed = draw(RED, n=2, guidance=3.0, adapters=[{}, {"word": 1.0, "p2": 0.5}])
    assert same(mixed.tensor[0], plain.tensor[0])
    assert same(mixed.tensor[1:], draw(RED, n=1, seed=1, guidance=3.0, adapters={"word": 1.0, "p2": 0.5}).tensor)
    with pytest.raises(ValueError, match="'word' is a prefix"):
        loaded.merge("word")
    assert loaded.load_lora({"unet": LoRA.build(network, ["stem"])}, name="fresh") is None
    assert torch.equal(draw(RED, n=2, guidance=3.0, adapters={"fresh": 1.0}).tensor, plain.tensor)
    with pytest.raises(ValueError, match="no part prior to adapt here; there are: text_encoder, unet, vae"):
        loaded.load_lora({"prior": LoRA.build(network, ["stem"])})


def test_what_cannot_be_asked(draw: Draw, loaded: Pipeline, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter 'p7' is loaded; there are: p1, p2, p3"):
        draw(PINK, n=1, adapters={"p7": 1.0})
    for asked in ("p7", ["p7"], ("p7", {})):
        with pytest.raises(ValueError, match=r'adapters are given with their strengths, as {"p7": 1.0}; got .p7.'):
            draw([PINK, RED], n=1, adapters=asked)
    with pytest.raises(ValueError, match=r'with their strengths, as {"p7": 1.0}; got 0.5'):
        draw(PINK, n=1, adapters=0.5)
    with pytest.raises(ValueError, match="3 choices of adapters: give one for all, one for each of 2 prompts, or .* 4"):
        draw([PINK, RED], n=2, adapters=[{}, {}, {}])
    with pytest.raises(ValueError, match="'p1': a strength is a finite number, got nan"):
        draw(PINK, n=1, adapters={"p1": float("nan")})
    with pytest.raises(ValueError, match="'p1' is loaded already: give another name="):
        loaded.load_lora(files["p1"])
    with pytest.raises(ValueError, match="no adapter 'p7' is loaded"):
        loaded.unload("p7")
    save_file({"lora_unet_nowhere.lora_down.weight": torch.ones(1, 2)}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="fits nowhere"):
        loaded.load_lora(tmp_path / "bad.safetensors")
    assert list(loaded.adapters()) == ["p1", "p2", "p3"]


def test_a_pipeline_that_moves_takes_its_adapters_along(tiny_models: Path, files: dict[str, Path]) -> None:
    pipe = zoo.load(tiny_models / "tiny", device="cpu")
    pipe.load_lora(files["p1"])
    how = {"n": 1, "steps": 2, "progress": False}
    plain, full = (pipe(PINK, adapters=chosen, **how).tensor for chosen in ({}, {"p1": 1.0}))  # type: ignore[arg-type]
    pipe.to(dtype=torch.bfloat16)
    assert {p.dtype for m in pipe._adapters._loaded["p1"].modules.values() for p in m.parameters()} == {torch.bfloat16}
    low = pipe(PINK, adapters={"p1": 1.0}, **how).tensor  # type: ignore[arg-type]
    assert apart(low, full) < 0.2 * apart(full, plain), "what is rounded is far less than what the adapter does"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_same_before_loading_and_after(
    tiny_models: Path, files: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    """What is drawn and what is merged, to the bit; nothing is left to be cast in a call."""
    made: list[dict[str, Tensor]] = []
    for first in (True, False):
        pipe = zoo.load(tiny_models / "tiny", device="cpu", dtype=dtype if first else None)
        if not made:
            shaken(pipe).save(tmp_path / "prefix.safetensors", "unet")
        pipe.load_lora(files["p3"])
        pipe.load_prefix(tmp_path / "prefix.safetensors")
        pipe.to(dtype=dtype)
        loaded = pipe._adapters._loaded.values()
        assert {p.dtype for found in loaded for m in found.modules.values() for p in m.parameters()} == {dtype}
        drawn = {
            name: pipe(PINK, n=1, steps=2, progress=False, adapters={name: 0.7}).tensor for name in pipe.adapters()
        }
        pipe.merge({"p3": 0.7})
        made.append(drawn | weights(pipe))
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if not torch.equal(made[0][name], made[1][name])] == []
    plain = weights(zoo.load(tiny_models / "tiny", device="cpu", dtype=dtype))["unet.stem"]
    stored = load_file(files["p3"])
    change = torch.tensordot(stored["unet.stem.up"].flatten(1), stored["unet.stem.down"], dims=1)  # alpha is the rank
    assert torch.equal(made[0]["unet.stem"], (plain + 0.7 * change).to(dtype).float()), "rounded once, at the end"


def test_what_half_precision_rounded_comes_back(tiny_models: Path, files: dict[str, Path]) -> None:
    pipe = zoo.load(tiny_models / "tiny", device="cpu")
    pipe.load_lora(files["p3"])
    before = {name: tensor.detach().clone() for name, tensor in factors(pipe).items()}
    parameters = pipe.adapters()["p3"].parameters
    for dtype in (torch.bfloat16, torch.float16):
        pipe.to(dtype)
        assert all(torch.equal(tensor, before[name].to(dtype)) for name, tensor in factors(pipe).items())
        assert pipe.adapters()["p3"].parameters == parameters
    pipe.to(torch.float32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in factors(pipe).items())


def test_what_is_handed_over_to_be_trained_stays_float32(tiny_models: Path) -> None:
    pipe = zoo.load(tiny_models / "tiny", device="cpu", dtype=torch.bfloat16)
    unet = pipe.adaptable()["unet"].module
    lora, prefix = LoRA.build(unet, ["*.to_q"]), Prefix.build(unet, length=2).float()
    pipe.load_lora({"unet": lora})
    pipe.load_prefix({"unet": prefix})
    assert {p.dtype for p in (*lora.parameters(), *prefix.parameters())} == {torch.float32}


def shaken(pipe: Pipeline) -> Prefix:
    """A prefix that changes something, as after training."""
    prefix = Prefix.build(pipe.adaptable()["unet"].module, length=3).requires_grad_(False).float()
    source = torch.Generator().manual_seed(7)
    for layer in prefix.layers.values():
        layer.pairs.copy_(torch.randn(layer.pairs.shape, generator=source))
        layer.gate.copy_(torch.randn(layer.gate.shape, generator=source))
    return prefix


def factors(pipe: Pipeline) -> dict[str, Tensor]:
    """The matrices of p3, by part and name."""
    parts = pipe._adapters._loaded["p3"].modules.items()
    return {f"{part}.{name}": tensor for part, module in parts for name, tensor in module.named_parameters()}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shelf: Path) -> Run:
    return Run(monkeypatch, capsys)


def test_command_line(run: Run, files: dict[str, Path], draw: Draw, tmp_path: Path) -> None:
    status, told, _ = run("lora", "report", str(files["p1"]), "--model", "tiny", "--keys")
    assert status == 0
    assert f"{files['p1']}: kohya" in told
    assert "  lora_unet_conv_in.lora_down.weight -> unet: stem" in told
    assert told.count(" -> ") == len(load_file(files["p1"]))

    bad = load_file(files["p1"]) | {"lora_unet_nowhere.alpha": torch.tensor(1.0)}
    save_file(bad, tmp_path / "bad.safetensors")
    status, told, _ = run("lora", "report", str(tmp_path / "bad.safetensors"), "-m", "tiny")
    assert status == 1
    assert "no such module (1): lora_unet_nowhere.alpha" in told

    options = ["-m", "tiny", "-n", "1", "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "out")]
    status, told, _ = run("generate", PINK, *options, "--lora", f"{files['p1']}:0.8", "--lora", str(files["p2"]))
    assert status == 0
    with Image.open(told.splitlines()[0]) as image:
        assert '"adapters": {"p1": 0.8, "p2": 1.0}' in image.text["settings"]  # type: ignore[attr-defined]
        made = torch.from_numpy(np.array(image)).movedim(2, 0)[None] / 255
    wanted = draw(PINK, n=1, adapters={"p1": 0.8, "p2": 1.0}).tensor
    assert (made - wanted).abs().max() <= 1.5 / 255  # half a step more for the PNG
    status, _, err = run("generate", PINK, *options, "--lora", "none.safetensors:2")
    assert status == 2
    assert "there is no adapter 'none.safetensors'" in err
    assert "\n  zoo lora report" in run("lora", "report", "--help")[1]


def test_what_is_extracted_at_full_rank_is_the_difference(run: Run, tiny_models: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    status, out, err = run("lora", "extract", "other", "--model", "tiny", "--rank", "1000", "--out", str(path))
    assert status == 0, err
    assert out.splitlines()[-1] == str(path)
    tiny, other = (zoo.load(tiny_models / name, device="cpu") for name in ("tiny", "other"))
    before, after = weights(tiny), weights(other)
    tiny.load_lora(path, name="all")
    tiny.merge("all")
    for name, merged in weights(tiny).items():
        assert (after[name] - before[name]).abs().max() > 0.1, name
        assert torch.allclose(merged - before[name], after[name] - before[name], atol=5e-3), name  # float16 is stored


def test_what_is_extracted_is_of_the_rank_asked_for(run: Run, tiny: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "two.safetensors"
    status, _, err = run("lora", "extract", "other", "--model", "tiny", "--rank", "2", "--out", str(path))
    assert status == 0, err
    stored = load_file(path)
    down = {name.removesuffix(".down"): tensor for name, tensor in stored.items() if name.endswith(".down")}
    assert down.keys() == weights(tiny).keys(), "every layer of every part"
    assert {tensor.shape[0] for tensor in down.values()} == {2}
    assert {stored[f"{name}.up"].shape[1] for name in down} == {2}
    assert run("lora", "report", str(path), "--model", "tiny")[0] == 0


def test_nothing_is_extracted_where_nothing_differs(run: Run, tmp_path: Path) -> None:
    status, _, err = run("lora", "extract", "tiny", "--model", "tiny", "--out", str(tmp_path / "none.safetensors"))
    assert status == 2
    assert "nothing to extract" in err
    assert not list(tmp_path.iterdir())


def weights(pipe: Pipeline) -> dict[str, Tensor]:
    """Copies of all weights that LoRAs can reach, by part and module."""
    return {
        f"{part}.{name}": module.weight.detach().float().clone()
        for part, network in pipe.adaptable().items()
        for name, module in adaptable(network.module).items()
    }
