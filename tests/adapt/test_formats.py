"""LoRA files: published grammars, files that diffusers and PEFT write, ours read by them, and bad ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection

from zoo import tensors
from zoo.adapt.active import use
from zoo.adapt.formats import WEIGHTS, Format, locate, read, write
from zoo.adapt.lora import LoRA, Target, inject
from zoo.adapt.report import load
from zoo.interface import Adaptable, Conditioning
from zoo.stable_diffusion.configs import unet_config_from_diffusers
from zoo.stable_diffusion.keys import UNET, unet_to_diffusers
from zoo.stable_diffusion.unet import UNet, UNetConfig

PUBLISHED = Path(__file__).parent.parent / "data" / "published" / "lora-stable-diffusion-v1-5.json.gz"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
SMALL = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", CROSS_DOWN],
    "up_block_types": [CROSS_UP, "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "projection_dim": 8, "num_hidden_layers": 2}
TEXT |= {
    "num_attention_heads": 2,
    "max_position_embeddings": 10,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
Networks = dict[str, Adaptable]


def adaptable(unet: UNet, text: CLIPTextModelWithProjection) -> Networks:
    names = [name for name, _ in text.named_modules()]
    spelled = {name: (name, name.removeprefix("text_model.")) for name in names}
    return {"unet": Adaptable(unet, UNET.published(unet)), "text_encoder": Adaptable(text, spelled)}


@pytest.fixture
def small() -> Networks:
    """A U-Net and a text tower with random frozen weights."""
    torch.manual_seed(0)
    unet = UNet(unet_config_from_diffusers(SMALL)).requires_grad_(False)
    text = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT)).requires_grad_(False).eval()
    nn.init.normal_(unet.head.weight, std=0.2)
    return adaptable(unet, text)


@pytest.fixture(scope="session")
def published() -> dict[str, dict[str, object]]:
    loaded: dict[str, dict[str, object]] = json.loads(gzip.decompress(PUBLISHED.read_bytes()))
    return loaded


@pytest.fixture(scope="session")
def large() -> Networks:
    """Stable Diffusion 1.5's networks, without memory."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    text = tensors.on_meta(lambda: CLIPTextModelWithProjection(CLIPTextConfig(**sizes, **ends)))
    return adaptable(tensors.on_meta(lambda: UNet(UNetConfig())), text)


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of these shapes, each with a value of its own; alphas are 2."""
    return {
        key: torch.full(shape, 2.0 if key.endswith(".alpha") else 1e-3 * number)
        for number, (key, shape) in enumerate(shapes.items(), start=1)
    }


def loras(networks: Networks, seed: int = 3) -> dict[str, LoRA]:
    """LoRAs of every linear layer and convolution, of two ranks, that change something."""
    source = torch.Generator().manual_seed(seed)
    targets = [Target(pattern="*to_[qkv]", rank=3, alpha=6.0), Target(pattern="*", rank=2, alpha=1.0)]
    made = {
        "unet": LoRA.build(networks["unet"].module, targets, seed=source),
        "text_encoder": LoRA.build(networks["text_encoder"].module, ["*self_attn*", "*.fc?"], seed=source),
    }
    for lora in made.values():
        for layer in lora.layers.values():
            layer.up.data = 0.1 * torch.randn(layer.up.shape, generator=source)
    return made


def same(a: dict[str, LoRA], b: dict[str, LoRA]) -> bool:
    def plain(loras: dict[str, LoRA]) -> dict[tuple[str, str], tuple[object, ...]]:
        return {
            (part, name): (layer.alpha, layer.down.tolist(), layer.up.tolist())
            for part, lora in loras.items()
            for name, layer in lora.layers.items()
        }

    return plain(a) == plain(b)


def run_unet(network: nn.Module) -> Tensor:
    source = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(2, 4, 8, 8, generator=source), torch.randn(2, 5, 16, generator=source)
    times = torch.tensor([10.0, 900.0])
    with torch.no_grad():
        if isinstance(network, UNet):
            return network(x, times, Conditioning(tokens=tokens))
        return network(x, times, tokens).sample


def run_text(network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(torch.arange(3, 13)[None]).last_hidden_state


RUN = {"unet": run_unet, "text_encoder": run_text}


@pytest.fixture
def theirs(small: Networks) -> StableDiffusionPipeline:
    """diffusers' pipeline with the same weights as `small`, and a VAE that nobody asks."""
    unet = UNet2DConditionModel(**SMALL, sample_size=8)
    unet.load_state_dict(unet_to_diffusers(small["unet"].module.state_dict()))
    text = CLIPTextModel(CLIPTextConfig(**TEXT))
    given = small["text_encoder"].module.text_model.state_dict()
    inside = next(iter(text.state_dict())).startswith("text_model.")  # before transformers 5
    text.load_state_dict({f"text_model.{name}" if inside else name: tensor for name, tensor in given.items()})
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=[8], norm_num_groups=4),
        text_encoder=text.eval(),
        tokenizer=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def check_same(small: Networks, loaded: dict[str, LoRA], theirs: dict[str, nn.Module]) -> None:
    """Our networks with what was loaded do as theirs do, and not as they do by themselves."""
    for part, lora in loaded.items():
        module = small[part].module
        plain = RUN[part](module)
        injection = inject(module, lora, "loaded")
        with use({"loaded": 1.0}):
            made = RUN[part](module)
        injection.remove()
        assert (made - RUN[part](theirs[part])).abs().max() <= 1e-5
        assert (made - plain).abs().max() > 1e-3


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_old_attention_processors(prefix: str, suffix: str, published, large: Networks, tmp_path: Path) -> None:
    """diffusers 0.13 to 0.16, as in souljoy/sd-pokemon-model-lora-zh; later ones put `unet.` before the same keys."""
    stored = {prefix + key: tensor for key, tensor in filled(published["attn-procs"]).items()}
    path = tmp_path / f"pytorch_lora_weights{suffix}"
    if suffix == ".bin":
        torch.save(stored, path)
    else:
        save_file(stored, path)
    loaded, report = load(path, large)
    assert (report.format, report.fits, len(report.matched)) == ("attn-procs", True, 128)
    assert {(match.part, match.rank, match.alpha, match.assumed) for match in report.matched} == {
        ("unet", 4, 4.0, True)
    }
    assert sum(p.numel() for p in loaded["unet"].parameters()) == 797184
    assert "unet: 128 modules, rank 4, alpha 4 (assumed to be the rank in 128: the file does not say)" in str(report)
    for modern, old in published["attn-procs of peft"].items():
        module, _, side = modern.removesuffix(".weight").rpartition(".lora_")
        layer = loaded["unet"].layers[UNET.ours(module)]
        assert torch.equal(layer.down if side == "A" else layer.up, stored[prefix + old])


def test_kohya(published, large: Networks, tmp_path: Path) -> None:
    stored = filled(published["kohya"])
    save_file(stored, tmp_path / "style.safetensors", {"ss_network_dim": "4"})
    loaded, report = load(tmp_path / "style.safetensors", large)
    assert (report.format, report.fits) == ("kohya", True)
    assert {part: len(lora.layers) for part, lora in loaded.items()} == {"unet": 192, "text_encoder": 72}
    assert {(match.rank, match.alpha, match.assumed) for match in report.matched} == {(4, 2.0, False)}
    for kohya, module in published["module of kohya"].items():
        part = "unet" if kohya.startswith("lora_unet_") else "text_encoder"
        layer = loaded[part].layers[UNET.ours(module) if part == "unet" else module]
        assert torch.equal(layer.down, stored[f"{kohya}.lora_down.weight"])
        assert torch.equal(layer.up, stored[f"{kohya}.lora_up.weight"])
        assert layer.scale == 0.5


def test_a_file_for_convolutions_fits_linear_projections(published, tmp_path: Path) -> None:
    """1x1 convolutions and linear layers are the same mathematics; Stable Diffusion 1 has the one, 2 the other."""
    save_file(filled(published["kohya"]), tmp_path / "style.safetensors")
    unet = tensors.on_meta(lambda: UNet(UNetConfig(linear_projection=True)))
    loaded, report = load(tmp_path / "style.safetensors", {"unet": Adaptable(unet, UNET.published(unet))}, partial=True)
    assert list(report.faults) == ["no such module"]  # of the text encoder
    layer = loaded["unet"].layers["middle.transformer.proj_in"]
    assert (layer.down.shape, layer.up.shape) == ((4, 1280), (1280, 4))


def test_names_of_the_years_between(small: Networks, tmp_path: Path) -> None:
    """diffusers 0.17 to 0.25 spelled the same matrices in three more ways."""
    wide, narrow = torch.full((4, 16), 0.5), torch.full((16, 4), 0.25)
    stems = {
        "unet.mid_block.attentions.0.proj_in.lora": "middle.transformer.proj_in",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer": (
            "text_model.encoder.layers.0.self_attn.q_proj"
        ),
        "text_encoder.text_model.encoder.layers.1.self_attn.to_out_lora": (
            "text_model.encoder.layers.1.self_attn.out_proj"
        ),
        "text_encoder.encoder.layers.1.mlp.fc1.lora": "text_model.encoder.layers.1.mlp.fc1",
    }
    stored = {}
    for stem, ours in stems.items():
        out = 32 if ours.endswith("fc1") else 16
        stored |= {f"{stem}.down.weight": wide.clone(), f"{stem}.up.weight": narrow[:1].repeat(out, 1)}
    save_file(stored, tmp_path / "between.safetensors")
    loaded, report = load(tmp_path / "between.safetensors", small)
    assert {match.module for match in report.matched} == set(stems.values())
    assert all(
        layer.down.eq(0.5).all() and layer.up.eq(0.25).all()
        for lora in loaded.values()
        for layer in lora.layers.values()
    )


def randomised(module: nn.Module) -> nn.Module:
    source = torch.Generator().manual_seed(7)
    for child in module.modules():
        if isinstance(child, LoraLayer):
            for matrix in child.lora_B.values():
                matrix.weight.data = 0.1 * torch.randn(matrix.weight.shape, generator=source)
    return module


@pytest.mark.parametrize("with_metadata", [True, False])
def test_what_diffusers_writes(
    with_metadata: bool, small: Networks, theirs: StableDiffusionPipeline, tmp_path: Path
) -> None:
    alpha = 8 if with_metadata else 4  # without metadata, alpha is taken to be the rank
    configs = {
        "unet": LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q", "to_out.0", "conv1", "proj_in", "linear_1"]),
        "text_encoder": LoraConfig(
            r=2, lora_alpha=alpha // 2, target_modules=["q_proj", "fc1"], use_rslora=with_metadata
        ),
    }
    networks = {"unet": theirs.unet, "text_encoder": theirs.text_encoder}
    options: dict[str, object] = {}
    for part, config in configs.items():
        inject_adapter_in_model(config, networks[part], adapter_name="default")
        options[f"{part}_lora_layers"] = get_peft_model_state_dict(randomised(networks[part]), adapter_name="default")
        if with_metadata:
            options[f"{part}_lora_adapter_metadata"] = config.to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, **options)
    loaded, report = load(locate(tmp_path), small)
    assert report.fits
    assert report.format == "diffusers"
    assert all(match.assumed is not with_metadata for match in report.matched)
    assert loaded.keys() == networks.keys()
    check_same(small, loaded, networks)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_writes(rslora: bool, small: Networks, theirs: StableDiffusionPipeline, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=2,
        target_modules=["to_q", "to_v", "conv1"],
        rank_pattern={"attn2.to_q": 2, "conv1": 3},
        alpha_pattern={"attn2.to_q": 8},
        use_rslora=rslora,
    )
    wrapped = randomised(get_peft_model(theirs.unet, config))
    wrapped.save_pretrained(tmp_path)
    loaded, report = load(tmp_path, small)
    assert (report.format, report.fits) == ("peft", True)
    assert {(match.rank, match.alpha) for match in report.matched if "cross_attention.to_q" in match.module} == {
        (2, 8 * 2**0.5 if rslora else 8.0)
    }
    check_same(small, loaded, {"unet": theirs.unet})
    assert same(load(locate(tmp_path / "adapter_model.safetensors"), small)[0], loaded), "or one of its files"


@pytest.mark.parametrize("format", ["zoo", "kohya", "diffusers", "peft"])
def test_what_is_written_is_read(format: Format, small: Networks, tmp_path: Path) -> None:
    made = loras(small)
    if format == "peft":
        del made["text_encoder"]
    path = tmp_path / ("folder" if format == "peft" else "file.safetensors")
    write(path, made, format, networks=small)
    loaded, report = load(path, small)
    assert same(loaded, made)
    assert (report.format, report.fits) == (format, True)
    assert not any(match.assumed for match in report.matched)
    write(path, made, format, networks=small, dtype=torch.float16)
    halved = load(path, small)[0]
    assert all(p.dtype == torch.float32 for lora in halved.values() for p in lora.parameters())
    for part, lora in made.items():
        for a, b in zip(lora.parameters(), halved[part].parameters(), strict=True):
            assert torch.equal(a.half().float(), b)


def test_our_header(small: Networks, tmp_path: Path) -> None:
    write(tmp_path / "mine.safetensors", loras(small))
    said = tensors.metadata(tmp_path / "mine.safetensors")
    assert (said["format"], said["kind"], said["parts"]) == ("zoo", "lora", "unet,text_encoder")
    assert json.loads(said["rank"])["unet.middle.transformer.blocks.0.attention.to_q"] == 3
    assert json.loads(said["alpha"])["unet.middle.transformer.blocks.0.attention.to_q"] == 6.0


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_diffusers_reads_what_we_write(
    format: Format, small: Networks, theirs: StableDiffusionPipeline, tmp_path: Path
) -> None:
    made = loras(small)
    if format == "kohya":  # of the alphas in such a file, diffusers hears one for all attention
        for lora in made.values():
            for layer in lora.layers.values():
                layer.alpha = 1.5
    write(tmp_path / "ours.safetensors", made, format, networks=small)
    theirs.load_lora_weights(tmp_path, weight_name="ours.safetensors")
    for network in (theirs.unet, theirs.text_encoder):
        assert any(isinstance(child, LoraLayer) for child in network.modules())
    check_same(small, made, {"unet": theirs.unet, "text_encoder": theirs.text_encoder})


def test_peft_reads_what_we_write(small: Networks, theirs: StableDiffusionPipeline, tmp_path: Path) -> None:
    from peft import PeftModel

    made = {"unet": loras(small)["unet"]}
    write(tmp_path, made, "peft", networks=small)
    check_same(small, made, {"unet": PeftModel.from_pretrained(theirs.unet, tmp_path)})


def test_what_cannot_be_written(small: Networks, tmp_path: Path) -> None:
    made = loras(small)
    with pytest.raises(ValueError, match="unknown format 'onnx'; known: zoo, kohya, diffusers, peft"):
        write(tmp_path / "x", made, "onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of one network, not of unet, text_encoder"):
        write(tmp_path / "x", made, "peft", networks=small)
    with pytest.raises(ValueError, match="which names .* 'unet'"):
        write(tmp_path / "x", made, "diffusers")
    with pytest.raises(ValueError, match="kohya files know .* but not the part 'prior'"):
        write(tmp_path / "x", {"prior": made["unet"]}, "kohya", networks={"prior": small["unet"]})
    bare = {"unet": Adaptable(small["unet"].module, {})}
    with pytest.raises(ValueError, match="no published name is known for these modules of 'unet': .*stem"):
        write(tmp_path / "x", made, "diffusers", networks=bare)
    assert not (tmp_path / "x").exists()


@pytest.fixture
def good(small: Networks, tmp_path: Path) -> dict[str, Tensor]:
    """The tensors of a good kohya file."""
    write(tmp_path / "good.safetensors", {"unet": loras(small)["unet"]}, "kohya", networks=small)
    return load_file(tmp_path / "good.safetensors")


STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def spoilt(good: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    down, up = f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight"
    if how == "no up":
        return {key: tensor for key, tensor in good.items() if key != up}
    if how == "no down":
        return {key: tensor for key, tensor in good.items() if key != down}
    if how == "rank":
        return good | {down: good[down][:1].clone()}
    if how == "width":
        return good | {down: torch.zeros(3, 17)}
    if how == "nan":
        return good | {up: good[up].fill_(float("nan"))}
    if how == "alpha":
        return good | {f"{STEM}.alpha": torch.tensor(float("inf"))}
    if how == "dora":
        return good | {f"{STEM}.dora_scale": torch.ones(16)}
    assert how == "place"
    moved = {key: tensor.clone() for key, tensor in good.items() if key.startswith(STEM)}
    return good | {key.replace("mid_block", "mid_blok"): tensor for key, tensor in moved.items()}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no up", f"incomplete .*{STEM}.lora_down.weight .without its up matrix"),
        ("no down", f"incomplete .*{STEM}.lora_up.weight .without its down matrix"),
        ("rank", rf"misshapen .*{STEM}.lora_down.weight.*\[1, 16\] and \[16, 3\]: the weight \[16, 16\] needs"),
        ("width", rf"misshapen .*{STEM}.lora_down.weight.*\[3, 17\]"),
        ("nan", f"not finite .*{STEM}.lora_up.weight"),
        ("alpha", f"not finite .*{STEM}.alpha"),
        ("dora", f"cannot act without .*{STEM}.lora_down.weight.*{STEM}.dora_scale"),
        ("place", f"no such module .*{STEM.replace('mid_block', 'mid_blok')}.lora_down.weight"),
    ],
)
def test_a_key_that_is_wrong(how: str, said: str, good: dict[str, Tensor], small: Networks, tmp_path: Path) -> None:
    """The error names it; with partial=True the rest is loaded, and the report still tells."""
    save_file(spoilt(good, how), tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=f"(?s)fits in part only.*{said}"):
        load(tmp_path / "bad.safetensors", small)
    loaded, report = load(tmp_path / "bad.safetensors", small, partial=True)
    assert not report.fits
    whole = len(good) // 3
    assert len(loaded["unet"].layers) == (whole if how == "place" else whole - 1)
    assert ("middle.transformer.blocks.0.attention.to_q" in loaded["unet"].layers) == (how == "place")


def test_a_file_for_another_family_fits_nowhere(good: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(good, tmp_path / "other.safetensors")
    for partial in (False, True):
        with pytest.raises(
            ValueError, match="(?s)fits nowhere: 0 modules match.*another family.*lora_unet_conv_in.alpha"
        ):
            load(tmp_path / "other.safetensors", {"unet": nn.Sequential(nn.Linear(2, 2))}, partial=partial)


def test_no_lora_at_all(small: Networks, tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)\(unknown\) fits nowhere.*not understood \(1\): conv_in.weight"):
        load(tmp_path / "model.safetensors", small)


def test_damaged_files(good: dict[str, Tensor], tmp_path: Path) -> None:
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.safetensors cannot be read as safetensors"):
        read(tmp_path / "cut.safetensors")
    torch.save(good, tmp_path / "good.bin")
    (tmp_path / "cut.bin").write_bytes((tmp_path / "good.bin").read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut.bin"):
        read(tmp_path / "cut.bin")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ValueError, match="expected .safetensors"):
        read(tmp_path / "text.txt")
    with pytest.raises(ValueError, match="no adapter '.*none.safetensors': give a file"):
        locate(str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match=r"several adapters \(cut.bin, cut.safetensors"):
        locate(tmp_path)


def test_hub_ids(good: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository, one file of it, and what looks like a hub id but is not."""
    asked = []
    (tmp_path / "inner").mkdir()
    (tmp_path / "good.safetensors").rename(tmp_path / "inner" / "style.safetensors")

    class Api:
        def list_repo_files(self, repository: str, revision: str | None) -> list[str]:
            return ["README.md", "style.safetensors"]

    def snapshot(repository: str, **_: object) -> str:
        asked.append(repository)
        return str(tmp_path / "inner")

    class TransportError(Exception):
        """What a client of the hub raises where there is no network: a class of whatever it is built on."""

    kinds = iter((LocalEntryNotFoundError, TransportError))

    def download(repository: str, file: str) -> str:
        asked.append(f"{repository}: {file}")
        raise next(kinds)("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert locate("owner/style") == tmp_path / "inner" / "style.safetensors"
    for _ in range(2):
        with pytest.raises(ValueError, match="'owner/style/b/c.safetensors' is neither a path here nor .*: no network"):
            locate("owner/style/b/c.safetensors")
    assert asked == ["owner/style", *["owner/style: b/c.safetensors"] * 2]
    for missing in ("folder/style.safetensors", "./style", "style"):
        with pytest.raises(ValueError, match="there is no adapter"):
            locate(missing)
    assert len(asked) == 3


ASIDE = ["README.md", "checkpoint-500/pytorch_lora_weights.safetensors", "unet/model.safetensors", "sample.bin"]
PEFT = ["adapter_config.json", "adapter_model.bin"]


@pytest.mark.parametrize(
    ("there", "needed", "found"),
    [
        (["[x].safetensors"], ["[x].safetensors"], "[x].safetensors"),
        ([WEIGHTS[2], "epoch-1.safetensors"], [WEIGHTS[2]], WEIGHTS[2]),
        (["adapter.bin", "pytorch_lora_weights.bin"], ["pytorch_lora_weights.bin"], "pytorch_lora_weights.bin"),
        (["lora.safetensors", "word.safetensors"], ["lora.safetensors", "word.safetensors"], "lora.safetensors"),
        ([*PEFT, WEIGHTS[0], "optimizer.pt"], [PEFT[0], WEIGHTS[0]], ""),
        (PEFT, PEFT, ""),
    ],
)
def test_of_a_repository_only_its_adapter_is_fetched(
    there: list[str], needed: list[str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither checkpoints nor whole models in its folders; and what was fetched serves without network."""
    repository = tmp_path / "models--owner--style"
    kept = repository / "snapshots" / ("a" * 40)

    class Api:
        def list_repo_files(self, _: str, revision: str | None) -> list[str]:
            return [*ASIDE, *there]

    def download(_: str, revision: str | None, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert not local_files_only
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(kept.name)
        kept.mkdir(parents=True)
        for name in filter_repo_objects([*ASIDE, *there], allow_patterns=allow_patterns):
            (kept / name).touch()
        return str(kept)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", download)
        assert locate("owner/style") == kept / found
    assert sorted(file.name for file in kept.iterdir()) == needed
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate("owner/style") == kept / found


def test_without_network_what_is_kept_of_a_repository_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def list_repo_files(self, _: str, revision: str | None) -> list[str]:
            raise OSError("no route to host")

    repository = tmp_path / "models--owner--style"
    kept = repository / "snapshots" / ("a" * 40)
    for file, said in ((kept / "style.safetensors", ""), (repository / "refs" / "main", kept.name)):
        file.parent.mkdir(parents=True)
        file.write_text(said)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert locate("owner/style") == kept / "style.safetensors"
    with pytest.raises(ValueError, match="'owner/other' is neither a path here nor a LoRA on the hub"):
        locate("owner/other")


def test_nothing_is_fetched_of_a_repository_of_several_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def list_repo_files(self, _: str, revision: str | None) -> list[str]:
            return ["a.safetensors", "b.safetensors", "c/d.safetensors"]

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(ValueError, match=r"style holds no or several adapters \(a.safetensors, .*c/d.safetensors"):
        locate("owner/style")


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit('run')",)


def test_pickles_are_not_run(tmp_path: Path) -> None:
    torch.save({"lora": Bomb()}, tmp_path / "bomb.bin")
    with pytest.raises(ValueError, match="bomb.bin cannot be read as a file of tensors .*Nothing in it was run"):
        read(tmp_path / "bomb.bin")
    matrix = {"a.lora_A.weight": torch.ones(1, 2)}
    for stored in (matrix | {"steps": 3}, {"state_dict": matrix | {"steps": 3}, "epoch": 1}):
        for zipped in (True, False):
            torch.save(stored, tmp_path / "steps.bin", _use_new_zipfile_serialization=zipped)
            with pytest.raises(ValueError, match="other things than tensors: steps"):
                read(tmp_path / "steps.bin")
    torch.save({"state_dict": matrix, "epoch": 1}, tmp_path / "wrapped.ckpt")
    assert torch.equal(read(tmp_path / "wrapped.ckpt").entries["a"].tensors["down"], torch.ones(1, 2))
    (tmp_path / "page.bin").write_text("upstream connect error or disconnect/reset before headers")
    with pytest.raises(ValueError, match="page.bin cannot be read as a file of tensors .*: fetch it again"):
        read(tmp_path / "page.bin")
    torch.save([torch.ones(1)], tmp_path / "list.bin")
    with pytest.raises(ValueError, match="holds a list"):
        read(tmp_path / "list.bin")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "says use_dora"),
        ({"fan_in_fan_out": True}, "says fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "also changes the weights beneath: convert it"),
        ({"peft_type": "IA3"}, "of a IA3 adapter"),
        ({"r": 5, "rank_pattern": {}}, "misshapen .*of rank 3, where the config says 5"),
        ({"lora_alpha": "16"}, "adapter_config.json: lora_alpha is '16', expected a finite number"),
        ({"lora_alpha": 10**400}, "lora_alpha is 10+, expected a finite number"),
        ({"r": 2.5}, "adapter_config.json: r is 2.5, expected a whole number above 0"),
        ({"r": True}, "r is True, expected a whole number"),
        ({"use_rslora": "no"}, "use_rslora is 'no', expected true or false"),
        ({"rank_pattern": ["to_q"]}, r"rank_pattern is \['to_q'\], expected a table"),
        ({"rank_pattern": {"to_q(": 2}}, r"a key of rank_pattern is 'to_q\(', expected a regular expression"),
        ({"rank_pattern": {"to_q": None}}, "rank_pattern of 'to_q' is None, expected a whole number"),
        ({"alpha_pattern": {"to_q": [1]}}, r"alpha_pattern of 'to_q' is \[1\], expected a finite number"),
    ],
)
def test_a_peft_folder_that_cannot_act(changes: dict[str, object], said: str, small: Networks, tmp_path: Path) -> None:
    write(tmp_path, {"unet": loras(small)["unet"]}, "peft", networks=small)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(ValueError, match=f"(?s){said}"):
        load(tmp_path, small)
    config.write_text("{}")
    with pytest.raises(ValueError, match="no adapter config"):
        load(tmp_path, small)
    config.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no adapter config"):
        load(tmp_path, small)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"unet.lora_alpha": "16"}, "unet.lora_alpha is '16', expected a finite number"),
        ({"unet.rank_pattern": {"(": 2}}, r"a key of unet.rank_pattern is '\(', expected a regular expression"),
        ({"r": 0}, "bad.safetensors: r is 0, expected a whole number above 0"),
        ([1], r"the header's lora_adapter_metadata is no table, but \[1\]"),
        ("{", "the header's lora_adapter_metadata cannot be read"),
    ],
)
def test_a_header_of_diffusers_that_cannot_be(said: object, complaint: str, small: Networks, tmp_path: Path) -> None:
    write(tmp_path / "good.safetensors", {"unet": loras(small)["unet"]}, "diffusers", networks=small)
    header = {"format": "pt", "lora_adapter_metadata": said if isinstance(said, str) else json.dumps(said)}
    save_file(load_file(tmp_path / "good.safetensors"), tmp_path / "bad.safetensors", header)
    with pytest.raises(ValueError, match=complaint):
        load(tmp_path / "bad.safetensors", small)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alpha": json.dumps({"unet.stem": "2"})}, "alpha of unet.stem is '2', expected a finite number"),
        ({"rank": json.dumps({"unet.stem": 0})}, "rank of unet.stem is 0, expected a whole number above 0"),
        ({"rank": "[]"}, r"the header's rank is no table, but \[\]"),
        ({"alpha": None}, "the header does not say alpha as zoo writes them"),
    ],
)
def test_a_header_of_zoo_that_cannot_be(
    changes: dict[str, str | None], complaint: str, small: Networks, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    write(path, {"unet": loras(small)["unet"]})
    header = {key: value for key, value in (tensors.metadata(path) | changes).items() if value is not None}
    save_file(load_file(path), path, header)
    with pytest.raises(ValueError, match=complaint):
        load(path, small)


def test_a_matrix_without_dimensions_is_misshapen_also_beside_rslora(small: Networks, tmp_path: Path) -> None:
    write(tmp_path, {"unet": loras(small)["unet"]}, "peft", networks=small)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    stored = load_file(weights)
    key = next(key for key in stored if key.endswith("lora_A.weight"))
    save_file(stored | {key: torch.tensor(1.0)}, weights)
    with pytest.raises(ValueError, match=rf"(?s)fits in part only.*misshapen .*{key}"):
        load(tmp_path, small)
