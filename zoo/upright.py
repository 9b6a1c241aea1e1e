"""Pictures of files as they are meant to be seen."""

from __future__ import annotations

from PIL import Image, ImageOps


def upright(picture: Image.Image) -> Image.Image:
    """A picture turned as its camera said, or as it lies where nothing that can be read was said."""
    try:
        return ImageOps.exif_transpose(picture)
    except SyntaxError:  # PIL's word for EXIF that is none; where the picture is damaged, reading it says so again
        return picture


def as_rgb(picture: Image.Image) -> Image.Image:
    """A picture in mode RGB, upright, what is transparent over white."""
    turned = upright(picture)
    if not turned.has_transparency_data:
        return turned.convert("RGB")
    clear = turned.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
