"""The page as visitors have it: several at once, and one in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gradio_client import Client
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

import zoo
from zoo.app.models import Models
from zoo.app.page import build, launch
from zoo.pipeline import Pipeline

pytestmark = pytest.mark.slow
PROMPT = "粉色的蝴蝶,小精灵,卡通"
PATIENCE = 180_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def url(tiny_models: Path) -> Iterator[str]:
    """A page of the shipped model, by its name, and one with random weights, by its folder."""
    blocks = build(Models(["stable-diffusion-small", str(tiny_models / "tiny")], device="cpu"))
    _, url, _ = launch(blocks, server_name="127.0.0.1", prevent_thread_lock=True)
    yield url
    blocks.close()


@pytest.fixture(scope="module")
def small() -> Pipeline:
    return zoo.load("stable-diffusion-small", device="cpu")


def test_five_visitors_at_once_get_each_their_own_pictures(url: str, small: Pipeline) -> None:
    def visit(seed: int) -> bytes:
        client = Client(url, verbose=False)
        said = {"models": ["stable-diffusion-small"], "prompt": PROMPT, "seed": seed, "steps": "4", "film": False}
        files = client.predict(**said, api_name="/draw")[1]["value"]
        with Image.open(files[0]) as image:
            assert image.text["seed"] == str(seed)  # type: ignore[attr-defined]
            return image.tobytes()

    with ThreadPoolExecutor(5) as pool:
        made = list(pool.map(visit, range(5)))
    assert made == [small(PROMPT, n=1, seed=k, steps=4, progress=False).images[0].tobytes() for k in range(5)]


def browser() -> str:
    """Where Chromium is."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail("no Chromium to test the page in: `make test` installs it, or set CHROMIUM to where one is")
    return found


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    """The page in a browser; nothing that it asks for is elsewhere than on this machine."""
    elsewhere: list[str] = []
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(PATIENCE)
        here = (url, "data:", "blob:")
        page.on("request", lambda request: None if request.url.startswith(here) else elsewhere.append(request.url))
        page.goto(url)
        yield page
        chromium.close()
    assert elsewhere == []


def wait(page: Page, pattern: str) -> None:
    expect(page.locator("#pictures")).to_contain_text(re.compile(pattern), timeout=PATIENCE)


def middle_of(canvas: Locator) -> tuple[float, float]:
    """Where on the page it is; no canvas is without a place for long."""
    canvas.wait_for()
    box = canvas.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def at_middle(page: Page, canvas: Locator) -> bytes:
    """What is seen there, too small for the brush at the ends of a stroke to show."""
    x, y = middle_of(canvas)
    return page.screenshot(clip={"x": x - 4, "y": y - 4, "width": 8, "height": 8})


def settled(page: Page, canvas: Locator, before: bytes) -> None:
    """Wait until the middle of the canvas is no longer what it was before, nor changes any more."""
    last, end = before, time.monotonic() + PATIENCE / 1000
    while (now := at_middle(page, canvas)) == before or now != last:
        assert time.monotonic() < end, "the canvas did not change"
        last = now
        page.wait_for_timeout(200)


def test_a_visit(page: Page, small: Pipeline, tmp_path: Path) -> None:
    """Two models side by side, their steps, a download, a bad setting, and a part made anew."""
    page.locator("#prompt textarea").fill(PROMPT)
    page.locator("#models input").click()
    page.get_by_role("option", name="tiny").click()
    page.keyboard.press("Escape")
    page.locator("#steps input").fill("0")
    page.locator("#draw").click()
    expect(page.locator(".toast-body")).to_contain_text("steps must be a whole number of at least 1, not 0")
    page.locator("#steps input").fill("4")
    page.locator("#seed input").fill("3")
    page.locator("#draw").click()
    wait(page, r"4 steps.*seed 3.*tiny.*4 steps.*seed 3")

    seen = page.locator("#development")
    expect(seen).to_contain_text("latent: step 4 of 4")
    expect(seen.locator("img")).to_have_count(4)
    last = seen.locator("img").first.get_attribute("src")
    slider = page.locator("#step input[type=range]")
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    expect(seen).to_contain_text(re.compile("latent: step 2 of 4.*latent: step 2 of 4"))
    assert seen.locator("img").first.get_attribute("src") != last

    with page.expect_download() as arrived:
        page.locator("#files a[download]").first.click()
    arrived.value.save_as(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as image:
        drawn, said = image.convert("RGB"), image.text  # type: ignore[attr-defined]
    assert (said["prompt"], said["seed"], said["model"]) == (PROMPT, "3", "stable-diffusion-small")
    settings = json.loads(said["settings"])
    assert settings["steps"] == 4
    again = small(PROMPT, n=1, seed=3, progress=False, **settings).images[0]
    assert drawn.tobytes() == again.tobytes()

    page.get_by_role("tab", name="Inpaint").click()
    canvas = page.locator("#painting canvas").first
    nothing = at_middle(page, canvas)
    page.locator("#take").click()
    expect(canvas).to_be_visible()
    settled(page, canvas, nothing)  # no element of the page tells that the picture is on the canvas
    before = at_middle(page, canvas)
    x, y = middle_of(canvas)
    page.mouse.move(x, y - 30)
    page.mouse.down()
    page.mouse.move(x, y + 30, steps=5)
    page.mouse.up()
    settled(page, canvas, before)
    page.locator("#seed input").fill("5")
    page.locator("#inpaint").click()
    wait(page, r"seed 5.*seed 5")
    with page.expect_download() as arrived:
        page.locator("#files a[download]").first.click()
    arrived.value.save_as(tmp_path / "mended.png")
    with Image.open(tmp_path / "mended.png") as image:
        mended = image.convert("RGB")
    for corner in ((0, 0, 64, 8), (0, 56, 64, 64)):
        assert mended.crop(corner).tobytes() == drawn.crop(corner).tobytes(), "what is not painted stays to the pixel"
    middle = (26, 26, 38, 38)
    assert mended.crop(middle).tobytes() != drawn.crop(middle).tobytes()
