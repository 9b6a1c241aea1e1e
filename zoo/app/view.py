"""Results as HTML: a column for each model, pictures inside the page, small ones with crisp pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from zoo.app.draw import Drawing
from zoo.film import CLEAN, NOISY, Frame

CRISP = 256  # pictures with smaller sides are shown with their pixels as squares
EMPTY = '<div class="zoo-empty">Pictures appear here, a column for each model.</div>'
STYLE = """
.gradio-container > main { max-width: 88rem; margin: 0 auto; padding-top: 1rem !important; }
#title h1 { display: inline; font-size: 1.5rem; font-weight: 700; margin-right: .5rem; }
#pictures, #development, #title, :is(#pictures, #development, #title) .html-container { padding: 0 !important; }
.zoo-models { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); }
.zoo-models > section { max-width: 30rem; min-width: 0; }
.zoo-models h3 { font-size: .95rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.zoo-models p { font-size: .8rem; margin: .1rem 0 .5rem; opacity: .75; }
.zoo-pictures { display: grid; gap: .6rem; margin-bottom: .75rem; }
.zoo-pictures.one { grid-template-columns: minmax(0, 24rem); }
.zoo-pictures.many { grid-template-columns: repeat(2, minmax(0, 1fr)); }
.zoo-pictures figure { margin: 0; min-width: 0; }
.zoo-pictures img { width: 100%; height: auto; display: block; border-radius: 4px; }
.zoo-pictures img.crisp { image-rendering: pixelated; }
.zoo-pictures figcaption { font-size: .75rem; margin-top: .2rem; opacity: .75; }
.zoo-empty { display: grid; place-items: center; min-height: 16rem; padding: 1rem; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: 8px; color: var(--body-text-color-subdued); }
"""


def pictures(drawings: Sequence[Drawing], saved: Sequence[Sequence[Path]]) -> str:
    """What every model drew. `saved` are the files of `zoo.app.draw.save`: pictures hold their settings here too."""
    return _columns(
        _section(
            drawing.model,
            _how(drawing),
            _figures(
                _figure(path.read_bytes(), image, f"{drawing.model}: {prompt}", _caption(drawing, prompt, seed))
                for path, image, prompt, seed in zip(
                    paths,
                    drawing.result.images,
                    drawing.result.prompts,
                    drawing.result.seeds,
                    strict=False,  # films and the sheet follow
                )
            ),
        )
        for drawing, paths in zip(drawings, saved, strict=True)
    )


def development(drawings: Sequence[Drawing], step: int, number: int) -> str:
    """What every stage of every model had of picture `number` after `step` steps, both counted from 1.

    A stage with fewer steps shows its last.
    """
    sections = []
    for drawing in drawings:
        stages = drawing.films[number - 1].stages if len(drawing.films) >= number else {}
        note = "" if stages else "It draws without steps."
        sections.append(_section(drawing.model, note, "".join(_stage(frames, step) for frames in stages.values())))
    return _columns(sections)


def _stage(frames: Sequence[Frame], step: int) -> str:
    frame = frames[min(step, len(frames)) - 1]
    title = f"<p>{escape(frame.stage)}: step {frame.step} of {len(frames)}</p>"
    if frame.noisy is None or frame.clean is None:
        return f"{title}<p>It makes an embedding, a vector of numbers that is no picture.</p>"
    both = ((frame.noisy, NOISY), (frame.clean, CLEAN))
    return title + _figures(_figure(_png(image), image, f"{frame.stage}: {what}", what) for image, what in both)


def _how(drawing: Drawing) -> str:
    said = drawing.result.settings
    parts = [f"{said['sampler']}, {said['steps']} steps, guidance {said['guidance']:g}" if "sampler" in said else ""]
    parts += [f"{drawing.seconds:.1f} s"]
    if drawing.unknown:
        parts += [f"it does not know {', '.join(drawing.unknown)}: expect the picture to ignore that"]
    return "; ".join(filter(None, parts))


def _caption(drawing: Drawing, prompt: str, seed: int) -> str:
    return f"{prompt}, seed {seed}" if "edit" in drawing.result.settings else f"seed {seed}"


def _columns(sections: Iterable[str]) -> str:
    return f'<div class="zoo-models">{"".join(sections)}</div>'


def _section(title: str, note: str, inner: str) -> str:
    return f"<section><h3>{escape(title)}</h3>{f'<p>{escape(note)}</p>' if note else ''}{inner}</section>"


def _figures(figures: Iterable[str]) -> str:
    shown = list(figures)
    return f'<div class="zoo-pictures {"one" if len(shown) == 1 else "many"}">{"".join(shown)}</div>'


def _figure(png: bytes, image: Image.Image, alt: str, caption: str) -> str:
    crisp = ' class="crisp"' if max(image.size) < CRISP else ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f'<figure><img src="{source}" width="{image.width}" height="{image.height}" alt="{escape(alt, quote=True)}"'
        f"{crisp}><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()
