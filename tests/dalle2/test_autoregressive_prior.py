"""The autoregressive prior: its components and buckets, its choices, its cache, and a distribution that it recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from zoo import tensors
from zoo.dalle2.autoregressive_prior import (
    AutoregressiveConfig,
    AutoregressivePrior,
    AutoregressivePriorConfig,
    AutoregressiveTransformer,
    choice,
    high_level,
    loss,
)
from zoo.dalle2.quantiser import EmbeddingQuantiser, similarity
from zoo.dalle2.transformer import Cache
from zoo.diffusion.noise import ImageNoise
from zoo.interface import Conditioning, Init, Sampling, Step, TextFeatures, TextSpec
from zoo.weights import load_part, save_part

Shake = Callable[[nn.Module], nn.Module]
Words = Callable[[Sequence[int]], TextFeatures]


def embeddings(n: int = 800, seed: int = 0) -> Tensor:
    """Embeddings [n, 8] whose variance falls, along directions that are not the axes."""
    source = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(9)))
    return torch.randn(n, 8, generator=source) * torch.linspace(3, 0.1, 8) @ turned + 2


def quantiser(dimensions: int, buckets: int = 16, levels: int = 4) -> EmbeddingQuantiser:
    made = EmbeddingQuantiser(8, dimensions, buckets, levels)
    images = embeddings()
    made.measure(images, images + 2 * torch.randn(len(images), 8, generator=torch.Generator().manual_seed(1)))
    return made


def prior(small: dict[str, int], spec: TextSpec, shake: Shake | None = None, **more: object) -> AutoregressivePrior:
    torch.manual_seed(0)
    network = {**small, "dimensions": 4, "buckets": 6, "levels": 4}
    said = {"network": network, "text": spec, "image_space": "clip", **more}
    config = AutoregressivePriorConfig.model_validate(said)
    made = AutoregressiveTransformer(config.network)
    images = embeddings()
    made.quantiser.measure(images, images.flip(0))
    if shake is not None:
        shake(made)
    return AutoregressivePrior(made, config)


def ports(text: TextFeatures) -> Conditioning:
    return Conditioning(tokens=text.tokens, vector=text.pooled)


# --- components and buckets ------------------------------------------------------------------------------------------


def test_components_are_orthonormal_and_fall_in_variance() -> None:
    made, images = quantiser(8), embeddings()
    torch.testing.assert_close(made.components @ made.components.T, torch.eye(8), atol=1e-5, rtol=0)
    coefficients = made.coefficients(images)
    variances = coefficients.var(0)
    assert (variances.diff() < 0).all()
    covariance = coefficients.T @ coefficients / len(images)
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-3, rtol=0)
    torch.testing.assert_close(coefficients @ made.components + made.mean, images, atol=1e-4, rtol=0)


def test_what_is_left_out_is_what_varies_least() -> None:
    images, kept = embeddings(), quantiser(5)
    lost = (images - kept.mean) - kept.coefficients(images) @ kept.components
    variances = quantiser(8).coefficients(images).var(0, correction=0)
    torch.testing.assert_close(lost.square().sum(1).mean(), variances[5:].sum(), atol=1e-4, rtol=1e-3)


def test_an_error_is_at_most_half_a_bucket() -> None:
    made, images = quantiser(8, buckets=32), embeddings()
    codes = made.encode(images)
    assert (codes.min(), codes.max()) == (0, 31)
    error = (made.coefficients(images) - made.coefficients(made.decode(codes))).abs()
    half = (made.high - made.low) / 64
    assert (error <= half + 1e-4).all()
    assert (error.amax(0) > 0.9 * half).all(), "the bound is tight"
    assert torch.equal(made.encode(made.decode(codes)), codes)


def test_what_was_never_measured_takes_the_last_bucket() -> None:
    made = quantiser(2)
    assert made.encode(made.mean + 1e3 * made.components[:1]).tolist()[0][0] == 15
    assert made.encode(made.mean - 1e3 * made.components[:1]).tolist()[0][0] == 0


def test_codes_that_are_missing_are_held_at_the_mean() -> None:
    made, codes = quantiser(4), torch.tensor([[3, 7, 2, 9]])
    torch.testing.assert_close(made.decode(codes[:, :0]), made.mean[None])
    first = made.coefficients(made.decode(codes[:, :2]))
    torch.testing.assert_close(first[:, :2], made.coefficients(made.decode(codes))[:, :2], atol=1e-5, rtol=0)
    torch.testing.assert_close(first[:, 2:], torch.zeros(1, 2), atol=1e-5, rtol=0)


def test_levels_of_similarity_are_equally_frequent() -> None:
    made, images = EmbeddingQuantiser(8, 4, 8, 5), embeddings()
    texts = images + 3 * torch.randn(len(images), 8)
    made.measure(images, texts)
    levels = made.level(images, texts)
    assert levels.bincount(minlength=5).tolist() == pytest.approx([160] * 5, abs=1)
    alike = similarity(images, texts)
    for level in range(4):
        assert alike[levels == level].max() <= alike[levels == level + 1].min()


def test_too_few_embeddings_determine_nothing() -> None:
    with pytest.raises(ValueError, match="4 embeddings do not determine 4 components"):
        EmbeddingQuantiser(8, 4, 8, 5).measure(embeddings(4), embeddings(4))


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7), (1.0, 0.01)])
def test_choices_have_the_distribution_that_is_asked_for(temperature: float, top_p: float) -> None:
    likely, n = torch.tensor([0.05, 0.5, 0.0, 0.3, 0.15]), 10_000
    wanted = likely ** (1 / temperature)
    wanted = wanted / wanted.sum()
    nucleus = {1.0: [0, 1, 3, 4], 0.7: [1, 3], 0.01: [1]}[top_p]
    wanted = torch.where(torch.isin(torch.arange(5), torch.tensor(nucleus)), wanted, torch.zeros(()))
    chances = (torch.arange(n) + 0.5) / n
    chosen = choice(likely.log().expand(n, 5), chances, temperature, top_p)
    got = chosen.bincount(minlength=5) / n
    torch.testing.assert_close(got, wanted / wanted.sum(), atol=1.5 / n, rtol=0)


def test_the_ends_of_the_chances_and_the_likeliest() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 2.0, 1.0, -torch.inf]]).expand(2, 5)
    assert choice(logits, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()[0] == 1
    assert choice(logits, torch.tensor([0.5, 1.0 - 1e-12], dtype=torch.float64)).tolist()[1] == 3
    assert choice(logits, torch.tensor([0.0, 1.0]), temperature=0).tolist() == [2, 2]


def test_similarities_come_from_the_top_half() -> None:
    chances = (torch.arange(8000) + 0.5).double() / 8000
    levels = high_level(chances, 8, 0.5)
    assert levels.bincount(minlength=8).tolist() == [0] * 4 + [2000] * 4
    assert high_level(chances, 8, 1.0).bincount(minlength=8).tolist() == [1000] * 8
    assert high_level(torch.tensor([1.0]), 8, 0.5).tolist() == [7]


# --- the network and the part ----------------------------------------------------------------------------------------


def test_cached_logits_are_the_uncached_ones(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    network, text, cache = prior(small, spec, shake).network, words([1, 2, 3]), Cache()
    given = Conditioning(text.tokens, torch.arange(5) < torch.tensor([[5], [2], [4]]), text.pooled)
    codes, level = torch.randint(6, (3, 3)), torch.tensor([0, 3, 1])
    with torch.no_grad():
        whole = network(codes, level, given)
        one_by_one = [network(codes[:, :n], level, given, cache) for n in range(4)]
        torch.testing.assert_close(torch.cat(one_by_one, dim=1), whole, atol=1e-5, rtol=1e-5)
        assert whole.shape == (3, 4, 6)
        other = network(codes.flip(1), level, given)
    torch.testing.assert_close(other[:, 0], whole[:, 0])
    assert (other[:, 1:] - whole[:, 1:]).abs().amax() > 1e-2, "codes are looked at"


def test_an_image_does_not_depend_on_its_batch(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words
) -> None:
    part, how = prior(small, spec, shake, candidates=3), Sampling(guidance=1.5)
    together = part.generate(words([1, 2, 3]), words([0] * 3), ImageNoise([5, 6, 7]), how).data
    for row, prompt in enumerate([1, 2, 3]):
        alone = part.generate(words([prompt]), words([0]), ImageNoise([5 + row]), how).data
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
    assert part.shape() == (5,)


def test_guidance_acts_on_logits(small: dict[str, int], spec: TextSpec, shake: Shake, words: Words) -> None:
    part = prior(small, spec, shake, candidates=1, temperature=0.0, unit=False)
    text, null = words([1, 2]), words([0, 0])
    made = part.generate(text, null, ImageNoise([5, 6]), Sampling(guidance=4.0)).data
    noise = ImageNoise([5, 6]).draw("prior", -1, (2, 5))
    level = high_level(torch.special.ndtr(noise[:, 0].double()), 4, 0.5)
    codes = torch.zeros(2, 0, dtype=torch.long)
    with torch.no_grad():
        for _ in range(4):
            given, away = (part.network(codes, level, ports(said))[:, -1] for said in (text, null))
            codes = torch.cat([codes, (away + 4 * (given - away)).argmax(1, keepdim=True)], dim=1)
    torch.testing.assert_close(made, part.network.quantiser.decode(codes))


def test_an_observer_sees_it_grow_and_can_stop_it(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words
) -> None:
    part, text, steps = prior(small, spec, shake, unit=False), words([1, 2]), []

    def stop(stage: str, step: Step) -> bool:
        steps.append(step)
        return step.index == 1

    part.generate(text, text, ImageNoise([0, 1]), Sampling(), observe=stop)
    assert [(step.index, step.t) for step in steps] == [(0, 4.0), (1, 3.0)]
    shown = part.network.quantiser.coefficients(steps[-1].x0)
    assert shown.shape == (2, 4)
    torch.testing.assert_close(shown[:, 2:], torch.zeros(2, 2), atol=1e-4, rtol=0)


def test_stored_and_read_back(
    small: dict[str, int], spec: TextSpec, shake: Shake, words: Words, tmp_path: Path
) -> None:
    part = prior(small, spec, shake, top_p=0.9)
    config = save_part(tmp_path, part)
    assert config.kind == "autoregressive-prior"
    back = load_part(tmp_path, config)
    assert isinstance(back, AutoregressivePrior)
    text = words([1, 2])
    made, again = (one.generate(text, text, ImageNoise([0, 1]), Sampling()) for one in (part, back))
    assert torch.equal(made.data, again.data)
    assert back.config == part.config


def test_what_does_not_fit(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    part, text = prior(small, spec), words([1])
    with pytest.raises(ValueError, match="starts from nothing"):
        part.generate(text, text, ImageNoise([0]), Sampling(), init=Init(torch.zeros(1, 8)))
    with pytest.raises(ValueError, match="fewer than 4"):
        part.network(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, dtype=torch.long), ports(text))
    with pytest.raises(ValueError, match=r"shape \[1, 6\]|tokens is missing"):
        part.network(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.long), Conditioning())
    with pytest.raises(ValidationError, match="has no 9 components"):
        AutoregressiveConfig.model_validate({**small, "dimensions": 9})
    for wrong in ({"top_p": 0.0}, {"top": 1.5}, {"temperature": -1.0}):
        with pytest.raises(ValidationError, match="than"):
            prior(small, spec, **wrong)


def test_size_of_the_full_network() -> None:
    network = tensors.on_meta(lambda: AutoregressiveTransformer(AutoregressiveConfig()))
    items = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    items["positions"] = network.positions.numel()
    print(f"\nDALL-E 2: {sum(items.values()):,} parameters, published 1B: {items}")
    assert items["blocks"] == 24 * (12 * 1664**2 + 13 * 1664)
    assert network.config.prefix + network.config.dimensions == 384, "the published context"
    assert sum(items.values()) == sum(p.numel() for p in network.parameters())


def test_it_recovers_a_known_distribution(small: dict[str, int], spec: TextSpec, words: Words) -> None:
    """Two texts, each with a distribution over pairs of codes in which the second code depends on the first."""
    torch.manual_seed(0)
    said = {**small, "embedding": 8, "width": 32, "dimensions": 2, "buckets": 3, "levels": 2}
    network = AutoregressiveTransformer(AutoregressiveConfig.model_validate(said))
    text, pairs = words([1, 2]), list(product(range(3), repeat=2))
    true = torch.tensor([[0.4, 0, 0.1, 0, 0.3, 0, 0, 0, 0.2], [0, 0.1, 0, 0.5, 0, 0.1, 0.3, 0, 0]])
    points = network.quantiser.decode(torch.tensor(pairs))
    network.quantiser.edges.fill_(-2)  # all similarities are of one level, which would tell of the codes
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    which = torch.cat([torch.arange(9).repeat_interleave((10 * row).round().long()) for row in true])
    assert text.pooled is not None
    given = Conditioning(text.tokens.repeat_interleave(10, 0), vector=text.pooled.repeat_interleave(10, 0))
    for _ in range(150):
        value = loss(network, points[which], given)
        value.backward()
        optimiser.step()
        optimiser.zero_grad()
    entropy = -(true * true.clamp(min=1e-9).log()).sum(1).mean() / 2
    assert float(value.detach()) == pytest.approx(float(entropy), abs=0.02)
    rows, config = 400, {"network": said, "text": spec, "image_space": "clip", "unit": False, "candidates": 1}
    part = AutoregressivePrior(network.eval(), AutoregressivePriorConfig.model_validate(config))
    for row in range(2):
        asked = words([row + 1] * rows)
        made = part.generate(asked, asked, ImageNoise(range(rows)), Sampling()).data
        codes = network.quantiser.encode(made)
        got = F.one_hot(codes[:, 0] * 3 + codes[:, 1], 9).float().mean(0)
        torch.testing.assert_close(got, true[row], atol=0.08, rtol=0)
