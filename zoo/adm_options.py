"""Published ADM U-Nets (diffusers' config.json) as ours, and ours as theirs, by tables of `zoo.options`.

Two classes of diffusers hold such networks: UNet2DConditionModel with text (DeepFloyd IF, Karlo's decoder) and
UNet2DModel without (Karlo's upsamplers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from zoo.adm import EPS, AdmUNetConfig
from zoo.options import BuiltIn, Fields, Options, levels_of, lists, read, refuse_others, take

T = TypeVar("T")

# Their option: (our field, the value that its absence means).
FIELDS: Fields = {
    "in_channels": ("in_channels", 4),
    "out_channels": ("out_channels", 4),
    "block_out_channels": ("channels", (320, 640, 1280, 1280)),
    "layers_per_block": ("blocks_per_level", 2),
    "time_embedding_dim": ("time_width", None),
    "act_fn": ("activation", "silu"),
    "dropout": ("dropout", 0.0),
    "norm_num_groups": ("groups", 32),
}
TEXT_FIELDS: Fields = FIELDS | {"attention_head_dim": ("head_width", 8)}
PLAIN_FIELDS: Fields = FIELDS | {
    "in_channels": ("in_channels", 3),
    "out_channels": ("out_channels", 3),
    "block_out_channels": ("channels", (224, 448, 672, 896)),
}

# Their option: the values that our network has built in.
BUILT_IN: BuiltIn = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "norm_eps": (EPS,),
    "time_embedding_type": ("positional",),
}
TEXT_BUILT_IN: BuiltIn = BUILT_IN | {
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None, "text_proj"),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn",),
    "only_cross_attention": (False,),
    "time_cond_proj_dim": (None,),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
}
PLAIN_BUILT_IN: BuiltIn = BUILT_IN | {
    "add_attention": (False,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2D",),
}
HARMLESS = {
    "addition_embed_type_num_heads",  # says something only with addition_embed_type
    "attention_head_dim",  # the same, of a network without attention
    "downsample_padding",  # of convolutions that halve; here residual blocks do
    "downsample_type",  # the same
    "num_train_timesteps",  # the length of the schedule
    "projection_class_embeddings_input_dim",  # says something only for other class_embed_types
    "sample_size",  # the size it was trained at
    "upcast_attention",  # these networks' attention always does
    "upsample_type",  # of convolutions that double
    "use_linear_projection",  # around transformers, of which there are none
}

PLAIN, JOINT = (
    ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
)
TEXT_NORMS = {None: None, "group_norm": "group"}
TIME_NORMS = {"default": False, "scale_shift": True}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu"}
CLASS_EMBEDS: dict[str | None, tuple[str, ...]] = {None: (), "timestep": ("augmentation",), "identity": ("vector",)}


def text_config_from_diffusers(options: Options, part: str, class_embeds: tuple[str | None, ...]) -> AdmUNetConfig:
    """The config of a published network with text; `part` names it in errors, and `class_embeds` are those it may have.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    options = read(options)
    fields = take(options, TEXT_FIELDS)
    down, up = options.pop("down_block_types", None), options.pop("up_block_types", None)
    fields["attention"] = attention = levels_of(down, up, JOINT, PLAIN)
    if not attention[-1]:
        raise ValueError(f"down_block_types={down}: supported is {JOINT[0]!r} last, for the middle has attention too")
    attended, given = options.pop("cross_attention_dim", 1280), options.pop("encoder_hid_dim", None)
    fields |= {"context_width": given, "text_channels": attended} if given else {"context_width": attended}
    fields["text_norm"] = _one_of("cross_attention_norm", options.pop("cross_attention_norm", None), TEXT_NORMS)
    if fields["text_norm"] == "group" and fields["groups"] != 32:
        raise ValueError(
            f"norm_num_groups={fields['groups']}: supported is 32 with a cross_attention_norm, whose it is"
        )
    pools = _one_of("addition_embed_type", options.pop("addition_embed_type", None), {None: False, "text": True})
    fields["pool_heads"] = options.get("addition_embed_type_num_heads", 64) if pools else None
    supported = {kind: CLASS_EMBEDS[kind] for kind in class_embeds}
    for port in _one_of("class_embed_type", options.pop("class_embed_type", None), supported):
        fields[port] = True
    _joined_once(options, fields["activation"])
    scale, of_middle = options.pop("resnet_out_scale_factor", 1.0), options.pop("mid_block_scale_factor", 1)
    if scale != of_middle or not isinstance(scale, float | int):
        raise ValueError(f"mid_block_scale_factor={of_middle}: supported is that of resnet_out_scale_factor={scale}")
    fields["residual_scale"] = 1 / scale
    return _finish(options, fields, TEXT_BUILT_IN, part)


def plain_config_from_diffusers(options: Options, part: str) -> AdmUNetConfig:
    """The config of a published network without text and attention; `part` names it in errors.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    options = read(options)
    fields = take(options, PLAIN_FIELDS)
    down, up = options.pop("down_block_types", None), options.pop("up_block_types", None)
    fields["attention"] = tuple(not plain for plain in levels_of(down, up, PLAIN, PLAIN))
    options.setdefault("add_attention", True)  # what its absence means
    return _finish(options, fields, PLAIN_BUILT_IN, part)


def config_to_diffusers(config: AdmUNetConfig) -> dict[str, object]:
    """The options of a diffusers UNet2DConditionModel, or UNet2DModel without text, that is the same network.

    Raises:
        ValueError: there is none, for diffusers has no such option.
    """
    kinds = [JOINT if attends else PLAIN for attends in config.attention]
    options: dict[str, object] = {theirs: lists(getattr(config, ours)) for theirs, (ours, _) in FIELDS.items()}
    options["down_block_types"] = [kind[0] for kind in kinds]
    options["up_block_types"] = [kind[1] for kind in reversed(kinds)]
    options["resnet_time_scale_shift"] = "scale_shift" if config.scale_shift else "default"
    if config.context_width is None:
        plain = not any(config.attention) and not config.vector and not config.augmentation
        if not plain or config.residual_scale != 1 or isinstance(config.blocks_per_level, tuple):
            raise ValueError(
                "diffusers has a network without text only without attention, vector and augmentation, with "
                "residual_scale=1 and one number of blocks_per_level"
            )
        return {"_class_name": "UNet2DModel", "add_attention": False, **options}
    if not config.attention[-1] or config.text_norm == "layer" or (config.vector and config.augmentation):
        raise ValueError(
            "diffusers has a network with text only with attention at the coarsest level, without a LayerNorm of the "
            "text in attention, and with one of vector and augmentation"
        )
    if config.text_norm == "group" and config.groups != 32:
        raise ValueError(f"groups={config.groups}: diffusers normalises text in 32 groups")
    ports = tuple(port for port in ("augmentation", "vector") if getattr(config, port))
    scale = 1 / config.residual_scale
    return {
        "_class_name": "UNet2DConditionModel",
        **options,
        "addition_embed_type": "text" if config.pool_heads else None,
        "addition_embed_type_num_heads": config.pool_heads or 64,
        "attention_head_dim": config.head_width,
        "class_embed_type": next(kind for kind, named in CLASS_EMBEDS.items() if named == ports),
        "cross_attention_dim": config.attended_width,
        "cross_attention_norm": "group_norm" if config.text_norm else None,
        "encoder_hid_dim": config.context_width if config.text_channels else None,
        "encoder_hid_dim_type": "text_proj" if config.text_channels else None,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "mid_block_scale_factor": scale,
        "resnet_out_scale_factor": scale,
    }


def _finish(options: dict[str, object], fields: dict[str, object], built_in: BuiltIn, part: str) -> AdmUNetConfig:
    time = options.pop("resnet_time_scale_shift", "default")
    fields["scale_shift"] = _one_of("resnet_time_scale_shift", time, TIME_NORMS)
    fields["activation"] = _one_of("act_fn", fields["activation"], ACTIVATIONS)
    refuse_others(options, built_in, HARMLESS, part)
    return AdmUNetConfig.model_validate(fields)


def _joined_once(options: dict[str, object], activation: object) -> None:
    # The time's nonlinearity stands in every block or once before them: the same, if it is once and of one kind.
    skipped, once = options.pop("resnet_skip_time_act", False), options.pop("time_embedding_act_fn", None)
    if once != (activation if skipped else None):
        raise ValueError(
            f"time_embedding_act_fn={once!r} with resnet_skip_time_act={skipped}: supported are act_fn with True, "
            "or None with False"
        )


def _one_of(option: str, value: object, supported: Mapping[Any, T]) -> T:
    if value not in supported:
        raise ValueError(f"{option}={value!r}: supported is {' or '.join(repr(known) for known in supported)}")
    return supported[value]
