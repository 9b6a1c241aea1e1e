"""The prior's parameters and options: ours, and those of diffusers' PriorTransformer (Karlo, Kandinsky 2).

Their causal mask acts only where a text mask is given, which both pipelines always do; ours always acts.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from zoo.dalle2.prior import PriorConfig
from zoo.keys import MLP, PROJECTIONS, KeyTable, Pairs, inside, rename, same
from zoo.options import BuiltIn, Fields, Options, read, refuse_others, take

PRIOR_PAIRS: Pairs = [
    ("tokens", "encoder_hidden_states_proj"),
    ("vector", "embedding_proj"),
    *inside("time", "time_embedding", MLP),
    ("image", "proj_in"),
    ("query", "prd_embedding"),
    ("positions", "positional_embedding"),
    *same("norm_in"),
    ("blocks.{}.norm1", "transformer_blocks.{}.norm1"),
    *inside("blocks.{}.attention", "transformer_blocks.{}.attn1", PROJECTIONS),
    ("blocks.{}.norm2", "transformer_blocks.{}.norm3"),  # theirs counts a cross-attention that is not there
    ("blocks.{}.feed_forward.first", "transformer_blocks.{}.ff.net.0.proj"),
    ("blocks.{}.feed_forward.second", "transformer_blocks.{}.ff.net.2"),
    ("norm", "norm_out"),
    ("head", "proj_to_clip_embeddings"),
    ("mean", "clip_mean"),
    ("std", "clip_std"),
]
PRIOR = KeyTable(PRIOR_PAIRS)

FIELDS: Fields = {
    "num_attention_heads": ("heads", 32),
    "num_layers": ("layers", 20),
    "embedding_dim": ("embedding", 768),
    "num_embeddings": ("length", 77),
}
BUILT_IN: BuiltIn = {
    "embedding_proj_norm_type": (None,),
    "encoder_hid_proj_type": ("linear",),
    "time_embed_act_fn": ("silu",),
    "time_embed_dim": (None,),
}
CHOICES: BuiltIn = {"added_emb_type": ("prd", None), "norm_in_type": ("layer", None)}
HARMLESS = {"dropout"}  # acts in training only
PART = "the prior's Transformer"


def prior_from_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a diffusers PriorTransformer under our names; a ValueError lists names it cannot place."""
    return rename(state, [PRIOR.ours], "prior")


def prior_to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our prior's tensors under the names of diffusers; a ValueError lists names it cannot place."""
    return rename(state, [PRIOR.theirs], "prior")


def prior_config_from_diffusers(options: Options) -> PriorConfig:
    """The config of a published prior. Options beginning with "_" are notes and ignored.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    said = read(options)
    head, added = said.pop("attention_head_dim", 64), said.pop("added_emb_type", "prd")
    additional = said.pop("additional_embeddings", 4)
    norm_in = said.pop("norm_in_type", None)
    fields = take(said, FIELDS)
    width = fields["embedding"]
    for name in ("embedding_proj_dim", "clip_embed_dim"):
        if said.pop(name, None) not in (None, width):
            raise ValueError(f"{name} makes another network than {PART}: supported is embedding_dim={width}")
    chosen = {"added_emb_type": added, "norm_in_type": norm_in, "additional_embeddings": additional}
    supported = {"additional_embeddings": (4 if added == "prd" else 3,), **CHOICES, **BUILT_IN}
    refuse_others(said | chosen, supported, HARMLESS, PART)
    fields |= {"query": added == "prd", "norm_in": norm_in == "layer", "text_width": width}
    return PriorConfig.model_validate(fields | {"width": int(str(head)) * int(str(fields["heads"]))})


def prior_config_to_diffusers(config: PriorConfig) -> dict[str, object]:
    """Our config as the options of a diffusers PriorTransformer.

    Raises:
        ValueError: theirs cannot be such a network.
    """
    if not config.timed or config.expansion != 4 or config.text_width != config.embedding:
        raise ValueError(
            "diffusers' PriorTransformer is told the time, is four times as wide in its feed-forward, and reads text "
            f"as wide as its embeddings; this prior has timed={config.timed}, expansion={config.expansion}, "
            f"text_width={config.text_width}, embedding={config.embedding}"
        )
    said = {theirs: getattr(config, ours) for theirs, (ours, _) in FIELDS.items()}
    said |= {"attention_head_dim": config.width // config.heads, "additional_embeddings": 3 + config.query}
    said |= {"added_emb_type": "prd" if config.query else None, "norm_in_type": "layer" if config.norm_in else None}
    return said
