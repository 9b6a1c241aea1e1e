"""Checkpoints of reduced width in the published layouts, written by diffusers' and transformers' own classes.

What those classes write differently today is turned back into what the published files hold: old names of attention in
the VAE, the prefix `text_model.` and `position_ids` in CLIP, configs with the keys of their time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

from zoo.stable_diffusion.keys import VAE, VAE_OLD

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PNDM = {"_class_name": "PNDMScheduler", **SD, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
DDIM_V = {
    **{"_class_name": "DDIMScheduler", **SD, "clip_sample": False, "prediction_type": "v_prediction"},
    **{"set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None},
}
OLD_PNDM = {"_class_name": "PNDMScheduler", **SD, "skip_prk_steps": True}  # as Taiyi's: forced to offset 1
CHINESE = "粉色的蝴蝶小精灵卡通红圆形绿星一只猫"


def random_weights(module: nn.Module, seed: int, gain: float = 1.0) -> Any:
    """Every weight random, norms around one, so that signals keep their size and every tensor shows."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0))
            elif "embed" in name:
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
    return module.eval()


def write_json(path: Path, said: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_clip_tokenizer(folder: Path, padding: str) -> None:
    """A byte-level BPE with the files and the special tokens of the published one, and few merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges = ["c a", "t </w>", "a t</w>", "p i", "n k</w>", "pi nk</w>", "ca t</w>"]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary += [merge.replace(" ", "") for merge in merges if merge != "t </w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(dict.fromkeys(vocabulary))})
    kept = [merge for merge in merges if merge != "t </w>"]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(kept) + "\n", "utf-8")
    special = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    end, begin = {"content": "<|endoftext|>", **special}, {"content": "<|startoftext|>", **special}
    named = {"bos_token": begin, "eos_token": end, "pad_token": padding, "unk_token": end}
    write_json(folder / "special_tokens_map.json", named)
    said = {name: {"__type": "AddedToken", **token} for name, token in named.items() if isinstance(token, dict)}
    said |= {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77}
    write_json(
        folder / "tokenizer_config.json", {**said, "pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}
    )


def write_bert_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHINESE, ",", "a", "cat", "##s", "pink"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n", "utf-8")
    said = {name: f"[{name[:-6].upper()}]" for name in ("cls_token", "mask_token", "pad_token", "sep_token")}
    said["unk_token"] = "[UNK]"
    write_json(folder / "special_tokens_map.json", said)
    options = {"do_lower_case": True, "model_max_length": 512, "tokenize_chinese_chars": True}
    write_json(folder / "tokenizer_config.json", {**said, **options, "tokenizer_class": "BertTokenizer"})


def clip_text(vocabulary: int, act: str, width: int = 32, heads: int = 2, seed: int = 1) -> Any:
    config = CLIPTextConfig(
        **{"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3},
        **{"num_attention_heads": heads, "max_position_embeddings": 77, "hidden_act": act, "projection_dim": width},
        **{"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    )
    return random_weights(CLIPTextModel(config), seed)


def bert_text() -> Any:
    config = BertConfig(
        **{"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 48, "max_position_embeddings": 512},
    )
    return random_weights(BertModel(config), 1)


def unet(width: int = 32, seed: int = 2, **options: Any) -> Any:
    said = {
        **{"sample_size": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": width},
        **{"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4},
        **{"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 8},
    }
    return random_weights(diffusers.UNet2DConditionModel(**{**said, **options}), seed, 1.2)


def vae(seed: int = 3, **options: Any) -> Any:
    said = {
        **{"block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 64},
        **{"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4},
    }
    return random_weights(diffusers.AutoencoderKL(**{**said, **options}), seed)


def old_vae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        ours = VAE.ours(name)
        assert ours is not None
        renamed[VAE_OLD.theirs(ours) or name] = tensor
    return renamed


def old_text_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    return named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def save_tensors(folder: Path, stem: str, state: Mapping[str, Tensor], ending: str, variant: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    if ending == ".safetensors":
        save_file(plain, folder / f"{stem}{variant}{ending}", metadata={"format": "pt"})
    else:
        torch.save(plain, folder / f"{stem}{variant}{ending}")


def flat(state: Mapping[str, Tensor], *others: Mapping[str, Tensor], dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """All tensors as views into one buffer, as a training that kept its weights flat leaves them."""
    every = [state, *others]
    buffer = torch.cat([tensor.flatten().to(dtype) for one in every for tensor in one.values()])
    views, place = [], 0
    for one in every:
        views.append({})
        for name, tensor in one.items():
            views[-1][name] = buffer[place : place + tensor.numel()].view(tensor.shape)
            place += tensor.numel()
    return views


def said_by(config: Any, *without: str) -> dict[str, Any]:
    """A component's config as an old release wrote it: without the options that came later."""
    told = {name: value for name, value in json.loads(config.to_json_string()).items() if name not in without}
    return {**told, "_diffusers_version": "0.11.1"}


class Checkpoint:
    """A folder in the published layout, and the modules that it was written from."""

    def __init__(self, folder: Path, kind: str, scheduler: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.folder, self.kind = folder, kind
        chinese = kind == "taiyi"
        ending = ".bin" if chinese else ".safetensors"
        v2 = kind == "sd21"
        own: dict[str, Any] = {}
        if v2:
            own = {"use_linear_projection": True, "attention_head_dim": (4, 8), "upcast_attention": True}
        elif kind == "inpaint":
            own = {"in_channels": 9}
        self.unet, self.vae = unet(**{**own, **options.get("unet", {})}), vae(**options.get("vae", {}))
        if chinese:
            write_bert_tokenizer(folder / "tokenizer")
            self.text_encoder = bert_text()
        else:
            write_clip_tokenizer(folder / "tokenizer", "!" if v2 else "<|endoftext|>")
            vocabulary = len(json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")))
            act = options.get("act", "gelu" if v2 else "quick_gelu")
            self.text_encoder = clip_text(vocabulary, act, **options.get("text", {}))
        self.scheduler = dict(scheduler or {"sd21": DDIM_V, "taiyi": OLD_PNDM}.get(kind, PNDM))
        self.write_configs()
        self.write_weights(ending)

    def write_configs(self) -> None:
        folder, text = self.folder, type(self.text_encoder).__name__
        words = "BertTokenizer" if text == "BertModel" else "CLIPTokenizer"
        pipeline = "StableDiffusionInpaintPipeline" if self.kind == "inpaint" else "StableDiffusionPipeline"
        write_json(
            folder / "model_index.json",
            {
                **{"_class_name": pipeline, "_diffusers_version": "0.6.0"},
                **{"feature_extractor": [None, None], "safety_checker": [None, None]},
                **{"scheduler": ["diffusers", self.scheduler["_class_name"]], "text_encoder": ["transformers", text]},
                **{"tokenizer": ["transformers", words], "unet": ["diffusers", "UNet2DConditionModel"]},
                **{"vae": ["diffusers", "AutoencoderKL"], "requires_safety_checker": False},
            },
        )
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler)
        write_json(folder / "unet" / "config.json", said_by(self.unet))
        write_json(folder / "vae" / "config.json", said_by(self.vae, "scaling_factor", "mid_block_add_attention"))
        told = json.loads(self.text_encoder.config.to_json_string())
        write_json(folder / "text_encoder" / "config.json", {**told, "architectures": [text]})

    def write_weights(self, ending: str) -> None:
        unet, vae, text = (module.state_dict() for module in (self.unet, self.vae, self.text_encoder))
        if self.kind == "taiyi":
            text = text | {"embeddings.position_ids": torch.arange(512)[None]}
            numbers = {name: tensor for name, tensor in text.items() if tensor.is_floating_point()}
            unet, numbers = flat(unet, numbers, dtype=torch.bfloat16)
            text = text | numbers
            for module, state in ((self.unet, unet), (self.text_encoder, numbers)):
                module.load_state_dict({name: tensor.float() for name, tensor in state.items()})
            for folder, state in (("unet", unet), ("text_encoder", text)):
                stem = "diffusion_pytorch_model" if folder == "unet" else "pytorch_model"
                (self.folder / folder).mkdir(exist_ok=True)
                torch.save(state, self.folder / folder / f"{stem}.bin")
        else:
            save_tensors(self.folder / "unet", "diffusion_pytorch_model", unet, ending)
            stem = "model" if ending == ".safetensors" else "pytorch_model"
            save_tensors(self.folder / "text_encoder", stem, old_text_names(text), ending)
        save_tensors(self.folder / "vae", "diffusion_pytorch_model", old_vae_names(vae), ending)

    def reference(self, kind: str | None = None) -> Any:
        """diffusers' own pipeline of the folder."""
        name = kind or ("StableDiffusionInpaintPipeline" if self.kind == "inpaint" else "StableDiffusionPipeline")
        loaded = getattr(diffusers, name).from_pretrained(
            self.folder,
            safety_checker=None,
            torch_dtype=torch.float32,  # transformers would keep what the file has
            use_safetensors=self.kind != "taiyi",
        )
        loaded.set_progress_bar_config(disable=True)
        return loaded


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Write a checkpoint of a kind, sd15, sd21, inpaint or taiyi, into a folder of its own."""
    return lambda kind, *args, **options: Checkpoint(tmp_path_factory.mktemp(kind) / kind, kind, *args, **options)


@pytest.fixture(scope="session")
def checkpoints(write: Callable[..., Checkpoint]) -> dict[str, Checkpoint]:
    """One of each kind, not to be changed."""
    return {kind: write(kind) for kind in ("sd15", "sd21", "inpaint", "taiyi")}
