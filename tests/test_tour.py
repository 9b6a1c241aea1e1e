"""The tour runs as it stands, each script in an environment and a folder of its own, and does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

TOUR = Path(__file__).parent.parent / "examples" / "tour"
STEP = 1 / 255 + 1e-6


def number(said: str, out: str) -> float:
    """The number that the script says behind these words."""
    match = re.search(re.escape(said) + r":? ([-+.\de]+)", out)
    assert match is not None, out
    return float(match[1])


def draw(out: str, folder: Path) -> None:
    assert number("largest difference when drawn alone", out) <= STEP
    assert len(list((folder / "draw").glob("*seed*.png"))) == 2 * 2 + 1
    assert len(list((folder / "draw").glob("contact-sheet-*.png"))) == 2


def compare(out: str, folder: Path) -> None:
    evaluations = [int(found) for found in re.findall(r"^\S+@\S+: (\d+) evaluations", out, re.MULTILINE)]
    assert len(evaluations) == 3
    assert evaluations[0] == evaluations[1] < evaluations[2]
    assert {"grid.png", "scores.csv", "report.html"} <= {path.name for path in (folder / "compare").iterdir()}


def swap(out: str, folder: Path) -> None:
    sizes, spaces = [line for line in out.splitlines() if line.startswith("refused: ")]
    assert "tokens are 96 wide, 192 are needed" in sizes
    assert "the sizes agree, but the text space is clip-" in spaces
    assert "To mend it" in sizes
    assert number("largest difference from the English", out) <= STEP
    assert len(list((folder / "german").glob("*seed*.png"))) == 4


def sampler(out: str, folder: Path) -> None:
    (line,) = re.findall(r"times walked: (.*)", out)
    times = [int(time) for time in line.split()]
    rises = [i for i, (a, b) in enumerate(pairwise(times)) if b > a]
    assert len(times) == 7 + 4
    assert rises == [6]
    assert times[4:7] == times[7:10]
    evaluations = {name: row.split(" | ")[7] for name in ("restart:8", "euler:11") for row in rows(out, name)[1:]}
    assert len(set(evaluations.values())) == 1
    assert len(list((folder / "restart").glob("*seed*.png"))) == 4


def rows(out: str, name: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(f"| stable-diffusion-small@{name} |")]


def train(out: str, folder: Path) -> None:
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert len(losses) == 4
    assert min(losses[2:]) < losses[0]
    assert (folder / "creatures" / "final" / "lora.safetensors").stat().st_size < 4e6
    changes = [number(f"strength {strength}: changed by", out) for strength in (0.0, 0.5, 1.0)]
    assert changes[0] <= STEP
    assert STEP < changes[1] < changes[2]


def export(out: str, folder: Path) -> None:
    assert number("largest difference", out) <= 2 / 255
    assert {"model_index.json", "unet", "vae", "text_encoder"} <= {
        path.name for path in (folder / "exported").iterdir()
    }
    assert (folder / "exported.safetensors").is_file()


CHECKS: dict[str, Callable[[str, Path], None]] = {
    "1_draw.py": draw,
    "2_compare.py": compare,
    "3_swap_text_encoder.py": swap,
    "4_write_a_sampler.py": sampler,
    "5_train_a_lora.py": train,
    "6_export.py": export,
}


def test_every_script_is_told_of_and_checked() -> None:
    scripts = sorted(path.name for path in TOUR.glob("*.py"))
    assert scripts == list(CHECKS)
    assert re.findall(r"^\| \[(\S+)\]\(\1\)", (TOUR / "README.md").read_text("utf-8"), re.MULTILINE) == scripts


@pytest.mark.slow
@pytest.mark.parametrize("script", CHECKS)
def test_the_tour(script: str, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, str(TOUR / script)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    CHECKS[script](ran.stdout, tmp_path / "outputs" / "tour")
