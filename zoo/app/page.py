"""The page itself: what stands where, and which button calls which method of `zoo.app.handlers`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is to leave the machine

import gradio as gr

from zoo.app import edit, view
from zoo.app.draw import ADAPTERS, MOST
from zoo.app.handlers import Handlers
from zoo.app.models import Models, label
from zoo.diffusion.samplers import SAMPLERS

WAITING = 64  # visitors in the queue before others are turned away
HOUR = 3600
MASK = "#ff2d55"
OWN = "the model's own"
THEME = gr.themes.Base(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

Action: TypeAlias = tuple[gr.Button, Callable[..., Any], list[Any]]
"""A button, what it calls, and the fields of its own that this takes."""


def build(models: Models, *, at_once: int = 2) -> gr.Blocks:
    """The page of these models. `at_once`: how many visitors are drawn for at a time; the others wait their turn."""
    handlers = Handlers(models)
    with gr.Blocks(title="zoo", analytics_enabled=False, delete_cache=(HOUR, 24 * HOUR), fill_width=True) as blocks:
        drawn = gr.State([], time_to_live=HOUR)
        gr.HTML("<h1>zoo</h1> text-to-image models side by side", elem_id="title")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                prompt, said = _settings(models, handlers)
            with gr.Column(scale=5, min_width=320):
                with gr.Tabs():
                    painters = [_draw_tab(handlers), _redraw_tab(handlers, drawn), _inpaint_tab(handlers, drawn)]
                    editors = [_vary_tab(models, handlers), _interpolate_tab(models, handlers)]
                pictures = gr.HTML(view.EMPTY, elem_id="pictures")
                development = _development(handlers, drawn)
                files = gr.Files(label="PNGs that hold their settings, and films", elem_id="files", visible=False)
        shown = [drawn, pictures, files, *development]
        how: dict[str, Any] = {"show_progress_on": pictures, "concurrency_limit": at_once, "concurrency_id": "drawing"}
        for button, act, inputs in painters:
            button.click(act, [*inputs, *said], shown, api_name=act.__name__, **how)
        for button, act, inputs in filter(None, editors):
            button.click(act, inputs, shown, api_name=act.__name__, **how)
        prompt.submit(handlers.draw, said, shown, api_visibility="private", **how)
    return blocks.queue(max_size=WAITING)


def launch(blocks: gr.Blocks, **settings: Any) -> tuple[Any, str, str]:
    """Serve a page, with the settings of `gradio.Blocks.launch`."""
    return blocks.launch(theme=THEME, css=view.STYLE, footer_links=[], ssr_mode=False, quiet=True, **settings)


def _settings(models: Models, handlers: Handlers) -> tuple[gr.Textbox, list[Any]]:
    """The left column; returns the prompt, and all that `Handlers.draw` takes."""
    names = [(label(name), name) for name in models.names]
    chosen = gr.Dropdown(names, value=[models.names[0]], multiselect=True, label="Models", elem_id="models")
    prompt = gr.Textbox("", label="Prompt", lines=2, max_lines=6, placeholder="in English or Chinese", elem_id="prompt")
    negative = gr.Textbox(
        "", label="Lead away from", placeholder="what the pictures should not show", elem_id="negative"
    )
    with gr.Row():
        count = gr.Number(1, label="Pictures", precision=0, elem_id="count", min_width=100)
        seed = gr.Number(0, label="Seed", precision=0, elem_id="seed", min_width=100)
    with gr.Accordion("Sampling"):
        sampler = gr.Dropdown([(OWN, ""), *((name, name) for name in SAMPLERS)], value="", label="Sampler")
        with gr.Row():
            # A number's field cannot be empty, which is to mean the model's own.
            steps, guidance = (
                gr.Textbox("", label=name, placeholder="its own", max_lines=1, elem_id=name.lower(), min_width=100)
                for name in ("Steps", "Guidance")
            )
        film = gr.Checkbox(True, label="Watch it develop", elem_id="film")
    with gr.Accordion("Adapters", open=False):
        adapters, strengths = _adapters(models, handlers)
    return prompt, [chosen, prompt, negative, count, seed, sampler, steps, guidance, film, adapters, *strengths]


def _adapters(models: Models, handlers: Handlers) -> tuple[gr.Dropdown, list[gr.Slider]]:
    choices = list(models.adapters.items())
    offered = gr.State(choices, time_to_live=HOUR)
    chosen = gr.Dropdown(
        choices,
        value=[],
        multiselect=True,
        max_choices=ADAPTERS,
        label="Act on every chosen model",
        elem_id="adapters",
    )
    sliders = [gr.Slider(-2, 2, 1, step=0.05, visible=False, interactive=True) for _ in range(ADAPTERS)]
    brought = gr.UploadButton("Bring a LoRA file", file_types=[".safetensors"], size="sm", elem_id="bring")
    brought.upload(handlers.bring, [brought, offered, chosen], [chosen, offered], api_visibility="private")
    slid = gr.State([], time_to_live=HOUR)  # whose sliders they are
    chosen.change(
        handlers.strengths,
        [chosen, slid, *sliders],
        [slid, *sliders],
        api_visibility="private",
        show_progress="hidden",
    )
    return chosen, sliders


def _draw_tab(handlers: Handlers) -> Action:
    with gr.Tab("Draw"):
        return gr.Button("Draw", variant="primary", elem_id="draw"), handlers.draw, []


def _redraw_tab(handlers: Handlers, drawn: gr.State) -> Action:
    with gr.Tab("Start from a picture"):
        with gr.Row(equal_height=False):
            image = gr.Image(label="Picture", type="pil", format="png", sources=["upload", "clipboard"], height=280)
            with gr.Column():
                strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="How much is made anew")
                taken = gr.Button("Take the first picture drawn", size="sm")
                button = gr.Button("Draw", variant="primary")
        taken.click(handlers.first, drawn, image, api_visibility="private")
    return button, handlers.redraw, [image, strength]


def _inpaint_tab(handlers: Handlers, drawn: gr.State) -> Action:
    with gr.Tab("Inpaint"):
        with gr.Row(equal_height=False):
            painting = gr.ImageEditor(
                label="Paint over a part",
                type="pil",
                format="png",  # the pixels that are kept must not change on their way
                sources=["upload", "clipboard"],
                transforms=(),
                brush=gr.Brush(colors=[MASK], color_mode="fixed", default_size=48),
                layers=False,
                canvas_size=(512, 512),
                height=420,
                elem_id="painting",
            )
            with gr.Column():
                strength = gr.Slider(0.05, 1, 1, step=0.05, label="How much is made anew")
                taken = gr.Button("Take the first picture drawn", size="sm", elem_id="take")
                button = gr.Button("Fill in", variant="primary", elem_id="inpaint")
        taken.click(handlers.first, drawn, painting, api_visibility="private")
    return button, handlers.inpaint, [painting, strength]


def _vary_tab(models: Models, handlers: Handlers) -> Action | None:
    with gr.Tab("Variations"):
        model = _editor(models)
        if model is None:
            return None
        with gr.Row(equal_height=False):
            image = gr.Image(label="Picture", type="pil", format="png", sources=["upload", "clipboard"], height=280)
            with gr.Column():
                count = gr.Slider(1, MOST, 4, step=1, label="Pictures")
                seed = gr.Number(0, label="Seed", precision=0)
                button = gr.Button("Vary", variant="primary")
    return button, handlers.vary, [model, image, count, seed]


def _interpolate_tab(models: Models, handlers: Handlers) -> Action | None:
    with gr.Tab("Interpolation"):
        model = _editor(models)
        if model is None:
            return None
        with gr.Row(equal_height=False):
            ends = [
                gr.Image(label=name, type="pil", format="png", sources=["upload", "clipboard"], height=240)
                for name in ("From", "To")
            ]
            with gr.Column():
                count = gr.Slider(2, MOST, 5, step=1, label="Pictures")
                seed = gr.Number(0, label="Seed", precision=0)
                inverted = gr.Checkbox(False, label="End at the pictures themselves")
                button = gr.Button("Interpolate", variant="primary")
    return button, handlers.interpolate, [model, *ends, count, seed, inverted]


def _editor(models: Models) -> gr.Dropdown | None:
    """The choice among the models that can edit, or word that none can."""
    able = edit.able(models)
    if not able:
        gr.Markdown(edit.why_not(models))
        return None
    return gr.Dropdown([(label(name), name) for name in able], value=able[0], label="Model")


def _development(handlers: Handlers, drawn: gr.State) -> list[Any]:
    """Where pictures are watched as they develop: the group, its two sliders, its pictures."""
    with gr.Column(visible=False) as group:
        gr.Markdown("### Watch it develop")
        with gr.Row():
            step = gr.Slider(1, 2, 1, step=1, label="Step", elem_id="step")
            number = gr.Slider(1, 2, 1, step=1, label="Picture", visible=False, elem_id="number")
        seen = gr.HTML(elem_id="development")
    for slider in (step, number):
        slider.input(
            handlers.develop,
            [drawn, step, number],
            seen,
            api_visibility="private",
            show_progress="hidden",
            trigger_mode="always_last",
        )
    return [group, step, number, seen]
