"""The prior of one step: its loss by hand, and that it learns which embedding belongs to which text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from zoo.dalle2.one_step_prior import OneStepPrior, OneStepPriorConfig, loss
from zoo.dalle2.prior import PriorTransformer
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Conditioning, Init, Sampling, Step, TextFeatures, TextSpec
from zoo.weights import load_part, save_part

Shake = Callable[[nn.Module], nn.Module]
Words = Callable[[Sequence[int]], TextFeatures]


def prior(small: dict[str, int], spec: TextSpec, shake: Shake | None = None, **more: object) -> OneStepPrior:
    torch.manual_seed(0)
    said = {"network": {**small, "timed": False}, "text": spec, "image_space": "clip", **more}
    config = OneStepPriorConfig.model_validate(said)
    network = PriorTransformer(config.network)
    network.measure(torch.randn(500, 8) * torch.linspace(0.2, 2, 8) + torch.linspace(-1, 1, 8))
    if shake is not None:
        shake(network)
    return OneStepPrior(network, config)


def ports(text: TextFeatures) -> Conditioning:
    return Conditioning(tokens=text.tokens, vector=text.pooled)


def test_one_pass_from_the_images_own_noise(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    part, text, noise = prior(small, spec, shake, unit=False, candidates=1), words([1, 2]), ImageNoise([5, 6])
    calls: list[int] = []
    part.network.register_forward_hook(lambda *_: calls.append(1))
    made = part.generate(text, text, noise, Sampling(steps=30)).data
    assert len(calls) == 1
    with torch.no_grad():
        said = part.network(noise.draw("prior", -1, (2, 8)), None, ports(text))
    torch.testing.assert_close(made, said * part.network.std + part.network.mean)


def test_guidance_extrapolates(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    part, text, null = prior(small, spec, shake, unit=False, candidates=1), words([1, 2]), words([0, 0])
    given, away, guided = (
        part.generate(said, against, ImageNoise([5, 6]), Sampling(guidance=scale)).data
        for said, against, scale in ((text, null, 1.0), (null, text, 1.0), (text, null, 3.0))
    )
    torch.testing.assert_close(guided, away + 3 * (given - away), atol=1e-4, rtol=1e-4)


def test_an_image_does_not_depend_on_its_batch(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words
) -> None:
    part = prior(small, spec, shake, candidates=3)
    together = part.generate(words([1, 2]), words([0, 0]), ImageNoise([5, 6]), Sampling()).data
    alone = part.generate(words([2]), words([0]), ImageNoise([6]), Sampling()).data
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=0)
    assert (together[0] - part.generate(words([1]), words([0]), ImageNoise([7]), Sampling()).data).abs().max() > 1e-3


def test_the_loss_by_hand(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    network, text = prior(small, spec, shake).network, words(range(6))
    true = torch.randn(6, 8)
    error, contrast = loss(
        network, true, ports(text), scale=20.0, weight=0.3, generator=torch.Generator().manual_seed(4)
    )
    with torch.no_grad():
        noise = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
        made = network(noise, None, ports(text))
    assert text.pooled is not None
    wanted = ((made - (true - network.mean) / network.std) ** 2).mean()
    cosines = F.cosine_similarity((made * network.std + network.mean)[:, None], text.pooled[None], dim=-1)
    torch.testing.assert_close(error, wanted)
    torch.testing.assert_close(contrast, -0.3 * (20 * cosines).log_softmax(1).diagonal().mean())


def test_dropped_texts_are_not_contrasted(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    network, text, true = prior(small, spec, shake).network, words(range(6)), torch.randn(6, 8)
    null = ports(words([99]))
    error, contrast = loss(network, true, ports(text), scale=20.0, null=null, dropout=1.0)
    assert float(contrast) == 0
    assert float(error) > 0
    source = torch.Generator().manual_seed(4)
    _, some = loss(network, true, ports(text), scale=20.0, null=null, dropout=0.5, generator=source)
    source.manual_seed(4)
    torch.randn(6, 8, generator=source)
    dropped = torch.rand(6, generator=source) < 0.5
    assert 0 < dropped.sum() < 6
    with torch.no_grad():
        noise = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
        made = network.restore(network(noise, None, ports(text)))
    assert text.pooled is not None
    terms = (20 * F.cosine_similarity(made[:, None], text.pooled[None], dim=-1)).log_softmax(1).diagonal()
    torch.testing.assert_close(some, -0.2 * terms[~dropped].mean(), atol=1e-5, rtol=1e-4)


def test_stored_and_read_back(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words, tmp_path: Path
) -> None:
    part = prior(small, spec, shake)
    config = save_part(tmp_path, part)
    assert config.kind == "one-step-prior"
    back = load_part(tmp_path, config)
    assert isinstance(back, OneStepPrior)
    text = words([1, 2])
    made, again = (one.generate(text, text, ImageNoise([0, 1]), Sampling()) for one in (part, back))
    assert torch.equal(made.data, again.data)
    assert back.produces == part.produces


def test_what_it_refuses(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part, text = prior(small, spec), words([1])
    with pytest.raises(ValueError, match="starts from noise alone"):
        part.generate(text, text, ImageNoise([0]), Sampling(), init=Init(torch.zeros(1, 8)))
    with pytest.raises(ValueError, match="no times: it works in one step"):
        part.network(torch.zeros(1, 8), torch.zeros(1), ports(text))
    with pytest.raises(ValidationError, match="network.timed must be false"):
        OneStepPriorConfig.model_validate({"network": small, "text": spec, "image_space": "clip"})


def test_it_learns_which_embedding_belongs_to_which_text(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part, text = prior({**small, "width": 32}, spec, unit=False), words(range(4))
    true = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    network = part.network.requires_grad_(True).train()
    network.measure(true)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(120):
        source = torch.Generator().manual_seed(step)
        error, contrast = loss(network, true, ports(text), scale=1.0, weight=0.01, generator=source)
        (error + contrast).backward()
        optimiser.step()
        optimiser.zero_grad()
    network.eval()
    seen: list[Step] = []
    made = part.generate(text, text, ImageNoise(range(4)), Sampling(), observe=lambda _, step: seen.append(step)).data
    assert torch.cdist(made, true).argmin(1).tolist() == [0, 1, 2, 3]
    assert (made - true).norm(dim=1).max() < 0.5 * torch.cdist(true, true)[~torch.eye(4, dtype=torch.bool)].min()
    assert [tuple(step.x.shape) for step in seen] == [(4, 8)]
