"""What the zoo exports, read back by diffusers, transformers and the zoo itself."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo import export, tensors
from zoo.diffusion import published
from zoo.diffusion.noise import ImageNoise
from zoo.pipeline import Pipeline
from zoo.stable_diffusion import original
from zoo.text.export import as_transformers
from zoo.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tests.published.conftest import Checkpoint

PROMPTS = ["a large pink butterfly on a cream background, cartoon", "粉色的蝴蝶,小精灵,卡通"]
SEEDS = (3, 4)
WORDS = [
    *("a", "large", "small", "pink", "red", "star", "circle", "circles", "butterfly", "house", "above", "on", "the"),
    *(
        "left",
        "of",
        "cartoon",
        "sketch",
        "white",
        "mint",
        "background",
        "three",
        "two",
        "粉色的",
        "蝴蝶",
        "红色",
        "星星",
    ),
    *("在", "左边", ",", ".", "!", "ξ", "🙂", "xyz", "Q", "<new0>", "<s>", "</s>", "<pad>"),
]
ODD = [
    *(
        "",
        " ",
        "  lead  and   trail ",
        "A  Red   STAR",
        "zebra ξ Ω",
        "两个ＡＢＣ全角　空格",
        "naïve café e\u0301",
        "🙂 🙂🙂",
    ),
    *(
        "tab\tnewline\n x",
        "x\u200dy",
        "ﬁne ½",
        "İstanbul",
        "ß STRASSE",
        "<new0> cat<new1>",
        "<NEW2><new63>",
        "▁under▁score",
    ),
    *("<s> x </s>", "<unk>", "한국어", "a\u00a0b", "１２３ stars", "粉色的蝴蝶,小精靈,卡通"),
]


@pytest.fixture(scope="module")
def small() -> Pipeline:
    return zoo.load("stable-diffusion-small", device="cpu")


@pytest.fixture(scope="module")
def exported(small: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.to_diffusers(small, tmp_path_factory.mktemp("exported") / "small")


def prompts() -> list[str]:
    chance = random.Random(0)
    spoken = [" ".join(chance.choices(WORDS, k=chance.randint(1, 7))) for _ in range(1500)]
    planes = ((32, 126), (0x4E00, 0x9FFF), (0xA0, 0x24F), (0x3000, 0x30FF), (0xFF00, 0xFFEF))
    scattered = [
        "".join(chr(chance.randint(*chance.choice(planes))) for _ in range(chance.randint(1, 12))) for _ in range(500)
    ]
    return [*ODD, *PROMPTS, *spoken, *scattered]


def test_tokenizers_give_the_same_ids(small: Pipeline, exported: Path, vocabulary: bytes) -> None:
    """The shipped one, read back from the exported folder, and the tests' own, of other settings."""
    from transformers import AutoTokenizer

    shipped = small.text_encoder.tokenizer  # type: ignore[attr-defined]
    pairs = [(shipped, AutoTokenizer.from_pretrained(exported / "tokenizer"))]
    pairs.append((Tokenizer(vocabulary, 16), as_transformers(Tokenizer(vocabulary, 16))))
    pieces = [shipped.pieces.id_to_piece(i).replace("▁", " ") for i in range(len(shipped))]
    compared = 0
    for ours, theirs in pairs:
        for prompt in [*prompts(), *pieces]:
            try:
                with warnings.catch_warnings(action="ignore"):
                    expected = ours.encode([prompt])[0].tolist()
            except ValueError:  # longer than the window
                continue
            found = theirs(prompt, padding="max_length", max_length=ours.window, truncation=True).input_ids
            assert found == expected, prompt
            compared += 1
    assert compared > 3000


@pytest.mark.parametrize("sampler", ["default", "ddim", "unipc"])
def test_diffusers_draws_the_same_pictures(
    sampler: str, small: Pipeline, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sampler != "default":
        defaults = small.defaults
        monkeypatch.setattr(small, "defaults", type(defaults)(**{**vars(defaults), "sampler": sampler}))
        exported = export.to_diffusers(small, tmp_path / "exported")
    reference = diffusers.StableDiffusionPipeline.from_pretrained(exported)
    reference.set_progress_bar_config(disable=True)
    turn = iter(range(100))
    module = type(reference.scheduler).__module__
    if sampler == "default":
        draw = lambda shape, **_: ImageNoise(SEEDS).draw("latent", next(turn), shape)  # noqa: E731
        monkeypatch.setattr(f"{module}.randn_tensor", draw)
    noise = ImageNoise(SEEDS).draw("latent", -1, (2, 4, 16, 16))
    expected = torch.from_numpy(
        reference(PROMPTS, latents=noise, num_inference_steps=10, guidance_scale=4.0, output_type="np").images
    ).movedim(-1, 1)
    settings: dict[str, Any] = {"steps": 10, "guidance": 4.0, "interval": (0.0, float("inf")), "progress": False}
    found = small(PROMPTS, n=1, seed=list(SEEDS), noise=noise, **settings).tensor
    assert expected.std() > 0.05
    assert (found - expected).abs().max() * 255 <= 2


def test_the_zoo_reads_it_back(small: Pipeline, exported: Path) -> None:
    again = zoo.load(exported, device="cpu")
    assert again.defaults.sampler == small.defaults.sampler
    settings: dict[str, Any] = {"n": 1, "steps": 4, "guidance": 4.0, "interval": (0.0, 1e9), "progress": False}
    a, b = (pipe(PROMPTS, **settings).tensor for pipe in (small, again))
    assert (a - b).abs().max() * 255 <= 1
    for part in ("unet", "vae", "text_encoder"):
        for path in (exported / part).glob("*.safetensors"):
            assert tensors.metadata(path) == {"format": "pt"}


@pytest.mark.parametrize("kind", ["sd15", "sd21", "inpaint", "taiyi"])
def test_published_checkpoints_go_there_and_back(kind: str, checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    pipe = zoo.load(checkpoints[kind].folder, device="cpu")
    folder = export.to_diffusers(pipe, tmp_path / "again")
    again = zoo.load(folder, device="cpu")
    assert again.defaults == pipe.defaults
    assert again.generator.config == pipe.generator.config  # type: ignore[attr-defined]
    for role in ("text_encoder", "generator", "decoder"):
        first, second = getattr(pipe, role).state_dict(), getattr(again, role).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        a, b = (p.text_encoder.encode(["a cat", "粉色的蝴蝶"]).tokens for p in (pipe, again))
    assert torch.equal(a, b)
    getattr(
        diffusers, "StableDiffusionInpaintPipeline" if kind == "inpaint" else "StableDiffusionPipeline"
    ).from_pretrained(folder, safety_checker=None)


def test_single_file(small: Pipeline, tmp_path: Path) -> None:
    path = export.to_single_file(small, tmp_path / "small.safetensors", torch.float16)
    stored = load_file(path)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    generator, decoder = export._parts(small)
    groups = {prefix: {} for prefix in (original.UNET, original.VAE)}  # type: ignore[var-annotated]
    for name, tensor in stored.items():
        prefix = next(prefix for prefix in groups if name.startswith(prefix))
        groups[prefix][name.removeprefix(prefix)] = tensor.float()
    network, vae = generator.denoiser.network, decoder.vae
    back = original.unet_from_original(groups[original.UNET], network.config)  # type: ignore[arg-type]
    assert back.keys() == network.state_dict().keys()
    torch.testing.assert_close(back, dict(network.state_dict()), atol=1e-3, rtol=1e-3)
    again = original.vae_from_original(groups[original.VAE], vae.config)
    torch.testing.assert_close(again, dict(vae.state_dict()), atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="let its name end in .safetensors"):
        export.to_single_file(small, tmp_path / "small.ckpt")


def test_nothing_half_written_and_nothing_overwritten(
    small: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(ValueError, match="is there already"):
        export.to_diffusers(small, tmp_path / "mine")
    monkeypatch.setattr(export, "vae_to_diffusers", lambda state: {"x": torch.tensor(float("nan"))})
    with pytest.raises(ValueError, match="x holds NaN"):
        export.to_diffusers(small, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_diffusers_has_no_place_for(small: Pipeline, tmp_path: Path) -> None:
    config = small.generator.config  # type: ignore[attr-defined]
    for change, message in (({"sampler": "lcm"}, "no scheduler like 'lcm'"), ({"spacing": "lcm"}, "no spacing like")):
        with pytest.raises(ValueError, match=message):
            export.scheduler_config(config, type(small.defaults)(**{**vars(small.defaults), **change}))
    other = SimpleNamespace(name="other", generator=small.decoder, decoder=small.generator)
    with pytest.raises(ValueError, match="what can be exported is Stable Diffusion"):
        export.to_diffusers(other, tmp_path / "x")  # type: ignore[arg-type]


def test_push_to_hub(exported: Path, tmp_path: Path) -> None:
    class Api:
        def __init__(self) -> None:
            self.asked: list[tuple[str, dict[str, Any]]] = []

        def create_repo(self, repository: str, **how: Any) -> str:
            self.asked.append((repository, how))
            return f"https://huggingface.co/{repository}"

        def upload_folder(self, **how: Any) -> None:
            if how["revision"] == "refused":
                raise OSError("403 Forbidden")
            self.asked.append((how["repo_id"], how))

    api = Api()
    address = export.push_to_hub(exported, "someone/small", private=True, api=api)
    assert address == "https://huggingface.co/someone/small"
    assert api.asked[0] == ("someone/small", {"private": True, "exist_ok": True})
    assert api.asked[1][1]["folder_path"] == str(exported)
    with pytest.raises(ValueError, match="'someone/small' cannot be uploaded to: 403 Forbidden"):
        export.push_to_hub(exported, "someone/small", revision="refused", api=api)
    with pytest.raises(ValueError, match="is no model folder to upload"):
        export.push_to_hub(tmp_path, "someone/small", api=api)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from zoo import cli

    monkeypatch.setattr("sys.argv", ["zoo", "export", "stable-diffusion-small", str(tmp_path / "out"), "--half"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    monkeypatch.setattr("sys.argv", ["zoo", "export", "stable-diffusion-small", "x", "--to", "gif"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize(("threshold", "cap"), [(None, None), (1.0, None), (0.99, 3.0)])
def test_bounds_of_clean_estimates_are_told(
    sampler: str, threshold: float | None, cap: float | None, small: Pipeline
) -> None:
    defaults = replace(small.defaults, sampler=sampler, threshold=threshold, cap=cap)
    told = published.read(export.scheduler_config(small.generator.config, defaults))  # type: ignore[attr-defined]
    assert (told.threshold, told.cap) == (threshold, cap)


def test_bounds_that_no_scheduler_keeps_are_refused(small: Pipeline) -> None:
    defaults = replace(small.defaults, sampler="euler", threshold=1.0)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler bounds no clean estimates"):
        export.scheduler_config(small.generator.config, defaults)  # type: ignore[attr-defined]


def test_the_usual_call_is_told(small: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "defaults", replace(small.defaults, rescale=0.7, eta=0.5))
    plain, painting = (export._readme(small, kind) for kind in ("StableDiffusionPipeline", export.INPAINTING))
    assert "guidance_scale=4, guidance_rescale=0.7, eta=0.5)" in plain
    assert "eta=0.5, image=picture, mask_image=mask)" in painting


def test_learned_words_are_refused(vocabulary: bytes) -> None:
    taught = Tokenizer(vocabulary, 16)
    taught.words["P7"] = "<new0>"
    with pytest.raises(ValueError, match="was not taught P7"):
        as_transformers(taught)
