"""The shapes of Imagen's base U-Net: the paper's, and those of DeepFloyd IF's configs.

python -m zoo.imagen.configs        how many parameters the paper's has, by component
"""

from __future__ import annotations

from zoo.adm import AdmUNetConfig
from zoo.adm_options import config_to_diffusers, text_config_from_diffusers
from zoo.adm_size import parameter_table
from zoo.options import Options

# arXiv 2205.11487, appendix F: embed_dim 512, multipliers 1-2-3-4, three residual blocks, text at 32, 16 and 8, heads
# of 64 channels, T5-XXL, a LayerNorm on the text in attention and in pooling. The paper does not say how wide the
# projected text is: here it is as wide as the time, as in DeepFloyd IF, which gives the heads of the pooling too.
BASE_64 = AdmUNetConfig(
    channels=(512, 1024, 1536, 2048),
    blocks_per_level=3,
    attention=(False, True, True, True),
    head_width=64,
    context_width=4096,
    text_channels=2048,
    text_norm="layer",
    pool_heads=64,
)
PUBLISHED = 2_000_000_000  # parameters


def adm_config_from_diffusers(options: Options) -> AdmUNetConfig:
    """The config of a U-Net of DeepFloyd IF, of stage I or II. Options beginning with "_" are notes and ignored.

    Raises:
        ValueError: for an option that would make another network than this one, naming what is supported.
    """
    return text_config_from_diffusers(options, "DeepFloyd IF's U-Net", (None, "timestep"))


def adm_config_to_diffusers(config: AdmUNetConfig) -> dict[str, object]:
    """The options of a diffusers UNet2DConditionModel that is the same network; a ValueError if there is none."""
    return config_to_diffusers(config)


def sizes() -> str:
    """The paper's base, counted by component, and other readings of what the paper leaves open."""
    variants = {
        "without pooled text": BASE_64.model_copy(update={"pool_heads": None}),
        "tokens not projected": BASE_64.model_copy(update={"text_channels": None}),
        "time added, not scale and shift": BASE_64.model_copy(update={"scale_shift": False}),
        "time as wide as the stem": BASE_64.model_copy(update={"time_width": 512}),
        "without text": BASE_64.model_copy(
            update={"context_width": None, "text_channels": None, "text_norm": None, "pool_heads": None}
        ),
    }
    return parameter_table("Imagen base 64", BASE_64, PUBLISHED, variants=variants)


if __name__ == "__main__":
    print(sizes())
