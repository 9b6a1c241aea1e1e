"""The grammar of what may be compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.comparison.spec import Spec, parse, parse_all


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("small", Spec("small", "small")),
        ("owner/name", Spec("owner/name", "owner/name")),
        (" small ", Spec("small", "small")),
        ("small@ddim", Spec("small@ddim", "small", sampler="ddim")),
        ("small@ddim:10", Spec("small@ddim:10", "small", sampler="ddim", steps=10)),
        ("small@:10", Spec("small@:10", "small", steps=10)),
        ("small+p7", Spec("small+p7", "small", adapters=(("p7", 1.0),))),
        ("small+a/b.safetensors:0.8", Spec("small+a/b.safetensors:0.8", "small", adapters=(("a/b.safetensors", 0.8),))),
        ("small+a:-1+c:x:2", Spec("small+a:-1+c:x:2", "small", adapters=(("a", -1.0), ("c:x", 2.0)))),
        ("small+c:x", Spec("small+c:x", "small", adapters=(("c:x", 1.0),))),
        ("small[decoder=other/decoder]", Spec("small[decoder=other/decoder]", "small", {"decoder": "other/decoder"})),
        (
            "small[generator=fast, decoder=o/decoder]+l.safetensors:0.5@euler:4",
            Spec(
                "small[generator=fast, decoder=o/decoder]+l.safetensors:0.5@euler:4",
                "small",
                {"generator": "fast", "decoder": "o/decoder"},
                (("l.safetensors", 0.5),),
                "euler",
                4,
            ),
        ),
    ],
)
def test_what_can_be_said(said: str, expected: Spec) -> None:
    assert parse(said) == expected


def test_a_path_that_exists_is_a_model_whatever_its_characters(tmp_path: Path) -> None:
    folder = tmp_path / "my+model@[2]"
    folder.mkdir()
    assert parse(str(folder)) == parse(folder) == Spec(str(folder), str(folder))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("", "expected MODEL"),
        ("@ddim", "expected MODEL"),
        ("small@ddim@euler", "expected MODEL"),
        ("small@ddim+lora", "expected MODEL"),
        ("small[decoder=other/decoder", "expected MODEL"),
        ("small@", "expected @SAMPLER"),
        ("small@ddim:", "at least 1 step"),
        ("small@ddim:0", "at least 1 step"),
        ("small@ddim:ten", "at least 1 step"),
        ("small@ddim:-3", "at least 1 step"),
        ("small+", r"after \+ comes an adapter"),
        ("small+:0.5", r"after \+ comes an adapter"),
        ("small[]", "expected PART=CHOICE"),
        ("small[vae=other/decoder]", "text_encoder, generator, decoder"),
        ("small[decoder]", "expected PART=CHOICE"),
        ("small[decoder=]", "expected PART=CHOICE"),
        ("small[decoder=a,decoder=b]", "says decoder twice"),
    ],
)
def test_what_cannot_be_read_is_shown_what_was_expected(said: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse(said)
    assert repr(said) in str(error.value)


def test_lists() -> None:
    assert [spec.sampler for spec in parse_all(["a", "a@ddim", "a@euler"])] == [None, "ddim", "euler"]
    with pytest.raises(ValueError, match="named twice: a@ddim"):
        parse_all(["a@ddim", "b", "a@ddim"])
    with pytest.raises(ValueError, match="no models"):
        parse_all([])
    with pytest.raises(ValueError, match="a list, such as"):
        parse_all("small")
