"""docs/adaptation.md is run as it is written, block after block."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parent.parent.parent / "docs" / "adaptation.md"


@pytest.mark.slow
def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    blocks = re.findall(r"```(python|bash)\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python", "python", "bash", "python", "python", "python"]
    session: dict[str, object] = {}
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, GUIDE.name, "exec"), session)
        else:
            subprocess.run(["bash", "-euc", block], check=True, capture_output=True)
    assert "{'mine': 0.8, 'theirs': None}" in capsys.readouterr().out
    assert list((tmp_path / "outputs").glob("*.png"))
