"""Configs of published checkpoints (diffusers' config.json) as ours, and ours as theirs, by tables of `zoo.options`."""

from __future__ import annotations

from zoo.options import BuiltIn, Fields, Options, levels_of, lists, read, refuse_others, sequence, take
from zoo.stable_diffusion.unet import UNetConfig
from zoo.stable_diffusion.vae import VAEConfig

# Their option: (our field, the value that its absence means).
UNET_FIELDS: Fields = {
    "in_channels": ("in_channels", 4),
    "out_channels": ("out_channels", 4),
    "block_out_channels": ("channels", (320, 640, 1280, 1280)),
    "layers_per_block": ("blocks_per_level", 2),
    "transformer_layers_per_block": ("depth", 1),
    "attention_head_dim": ("heads", 8),  # a count of heads, despite its name
    "cross_attention_dim": ("context_width", 1280),
    "use_linear_projection": ("linear_projection", False),
    "only_cross_attention": ("only_cross_attention", False),
    "upcast_attention": ("upcast_attention", False),
    "norm_num_groups": ("groups", 32),
    "norm_eps": ("eps", 1e-5),
    "flip_sin_to_cos": ("flip_sin_to_cos", True),
    "freq_shift": ("freq_shift", 0),
    "time_cond_proj_dim": ("guidance_width", None),
}
VAE_FIELDS: Fields = {
    "in_channels": ("in_channels", 3),
    "out_channels": ("out_channels", 3),
    "latent_channels": ("latent_channels", 4),
    "block_out_channels": ("channels", (64,)),
    "layers_per_block": ("blocks_per_level", 1),
    "norm_num_groups": ("groups", 32),
    "mid_block_add_attention": ("middle_attention", True),
    "use_quant_conv": ("quant_conv", True),
    "use_post_quant_conv": ("post_quant_conv", True),
    "scaling_factor": ("scaling_factor", 0.18215),
    "shift_factor": ("shift_factor", 0.0),
}

# Their option: the values that this network has built in.
UNET_BUILT_IN: BuiltIn = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None, "projection"),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
VAE_BUILT_IN: BuiltIn = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
}

UNET_HARMLESS = {
    "addition_embed_type_num_heads",  # says something only with addition_embed_type
    "addition_time_embed_dim",  # the same
    "dropout",  # acts in training only
    "mid_block_only_cross_attention",  # this kind of middle block never reads it
    "sample_size",  # the size it was trained at
}
VAE_HARMLESS = {
    "force_upcast",  # advice on precision
    "sample_size",
}

PLAIN, CROSS = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def unet_config_from_diffusers(options: Options) -> UNetConfig:
    """The config of a published U-Net. Options beginning with "_" are notes and ignored.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    options = read(options)
    fields = take(options, UNET_FIELDS)
    down = options.pop("down_block_types", (CROSS[0],) * 3 + (PLAIN[0],))
    up = options.pop("up_block_types", (PLAIN[1],) + (CROSS[1],) * 3)
    fields["attention"] = levels_of(down, up, CROSS, PLAIN)
    context = fields["context_width"]
    if isinstance(context, tuple):
        if len(set(context)) != 1:
            raise ValueError(f"cross_attention_dim={context}: supported is one width for all levels")
        fields["context_width"] = context[0]
    projected, levels = (
        options.pop("projection_class_embeddings_input_dim", None),
        options.pop("num_class_embeds", None),
    )
    if options.get("class_embed_type") == "projection":
        fields["vector_width"] = projected
    else:
        fields["augmentation_levels"] = levels
    refuse_others(options, UNET_BUILT_IN, UNET_HARMLESS, "Stable Diffusion's U-Net")
    return UNetConfig.model_validate(fields)


def unet_config_to_diffusers(config: UNetConfig) -> dict[str, object]:
    """The options of a diffusers UNet2DConditionModel that is the same network."""
    levels = range(len(config.channels))
    options: dict[str, object] = {"_class_name": "UNet2DConditionModel"}
    options |= {theirs: lists(getattr(config, ours)) for theirs, (ours, _) in UNET_FIELDS.items()}
    if config.head_width is not None:
        options["attention_head_dim"] = [max(1, c // config.head_width) for c in config.channels]
    options["down_block_types"] = [(CROSS if config.attention[i] else PLAIN)[0] for i in levels]
    options["up_block_types"] = [(CROSS if config.attention[i] else PLAIN)[1] for i in reversed(levels)]
    options["class_embed_type"] = None if config.vector_width is None else "projection"
    options["projection_class_embeddings_input_dim"] = config.vector_width
    options["num_class_embeds"] = config.augmentation_levels
    return options


def vae_config_from_diffusers(options: Options) -> VAEConfig:
    """The config of a published AutoencoderKL. Options beginning with "_" are notes and ignored.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    options = read(options)
    fields = take(options, VAE_FIELDS)
    if fields["shift_factor"] is None:
        fields["shift_factor"] = 0.0
    for option, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        blocks = options.pop(option, (kind,))
        if blocks != (kind,) * len(sequence(fields["channels"])):
            raise ValueError(f"{option}={blocks}: supported is {kind!r} once for each of block_out_channels")
    refuse_others(options, VAE_BUILT_IN, VAE_HARMLESS, "Stable Diffusion's VAE")
    return VAEConfig.model_validate(fields)


def vae_config_to_diffusers(config: VAEConfig) -> dict[str, object]:
    """The options of a diffusers AutoencoderKL that is the same network."""
    options: dict[str, object] = {"_class_name": "AutoencoderKL"}
    options |= {theirs: lists(getattr(config, ours)) for theirs, (ours, _) in VAE_FIELDS.items()}
    options["shift_factor"] = config.shift_factor or None
    options["down_block_types"] = ["DownEncoderBlock2D"] * len(config.channels)
    options["up_block_types"] = ["UpDecoderBlock2D"] * len(config.channels)
    return options
