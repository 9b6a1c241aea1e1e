"""Metrics on distributions whose answer is known, and against torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from zoo.clip import Clip
from zoo.evaluate import fresh
from zoo.evaluate.fresh_scenes import as_tensor
from zoo.evaluate.metrics import frechet_distance, inception_fid, kernel_distance, precision_recall

CLIP = Path(__file__).parent.parent.parent / "weights" / "clip-small"
DISTANCES = pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
Distance = Callable[[Tensor, Tensor], float]


def normal(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(n: int, width: int, seed: int = 0) -> Tensor:
    """Features whose mean is 0 and whose covariance is 1, but for rounding."""
    x = normal(n, width, seed)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    white = whitened(500, 8)
    first, second = normal(8, 8, 1), normal(8, 8, 2)
    shift = normal(1, 8, 3)
    a, b = white @ first.T, whitened(400, 8, 4) @ second.T + shift
    A, B = first @ first.T, second @ second.T
    values = torch.linalg.eigvals(A @ B).real.sqrt().sum()
    expected = shift.square().sum() + A.trace() + B.trace() - 2 * values
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_distance_of_one_dimension() -> None:
    x = normal(300, 1)
    white = (x - x.mean()) / x.std()
    assert frechet_distance(3 * white + 1, 5 * white - 1) == pytest.approx((3 - 5) ** 2 + 2**2)


def test_frechet_distance_of_fewer_features_than_their_width() -> None:
    a = normal(6, 20)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 20), "covariances without full rank"


@DISTANCES
def test_a_set_and_itself(distance: Distance) -> None:
    a = normal(200, 16)
    found = distance(a, a)
    assert abs(found) < 1e-6 if distance is frechet_distance else found < 0, "unbiased: below 0 for the very same"


def test_kernel_distance_is_that_of_the_polynomial_kernel() -> None:
    # Of points without spread the mean over others is the kernel itself: (1/4 + 1)^3 + (1/4 + 1)^3 - 2 (0 + 1)^3.
    a = torch.tensor([[1.0, 0, 0, 0]]).repeat(5, 1)
    b = torch.tensor([[0, 1.0, 0, 0]]).repeat(7, 1)
    assert kernel_distance(a, b) == pytest.approx(2 * 1.25**3 - 2)


def test_kernel_distance_is_unbiased_where_the_frechet_distance_is_not() -> None:
    pairs = [(normal(40, 8, 2 * i), normal(40, 8, 2 * i + 1)) for i in range(200)]
    kernel = torch.tensor([kernel_distance(a, b) for a, b in pairs], dtype=torch.float64)
    standard_error = float(kernel.std()) / math.sqrt(len(pairs))
    assert abs(float(kernel.mean())) < 3 * standard_error
    assert min(frechet_distance(a, b) for a, b in pairs[:20]) > 0.1
    moved = [kernel_distance(a, b + 0.7) for a, b in pairs[:20]]
    assert min(moved) > float(kernel.max())


@pytest.mark.parametrize(("n", "m"), [(60, 60), (90, 60)])
def test_distances_agree_with_torchmetrics(n: int, m: int) -> None:
    made, true = normal(n, 12) * 1.3 + 0.2, normal(m, 12, 1)
    fid = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    size = min(n, m)
    kid = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=size)
    for metric in (fid, kid):
        metric.update(true[: size if metric is kid else m], real=True)
        metric.update(made[: size if metric is kid else n], real=False)
    assert frechet_distance(made, true) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert kernel_distance(made[:size], true[:size]) == pytest.approx(float(kid.compute()[0]), rel=1e-5)


class Identity(nn.Module):
    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x


def modes(n: int, kinds: int, seed: int, first: int = 0) -> Tensor:
    """Features around centres far apart, the kinds in turn."""
    centres = 50 * torch.eye(8, dtype=torch.float64)
    return centres[first + torch.arange(n) % kinds] + normal(n, 8, seed)


def test_precision_and_recall_of_a_set_and_itself_and_of_one_source() -> None:
    a = modes(240, 4, 0)
    assert precision_recall(a, a) == (1.0, 1.0)
    precision, recall = precision_recall(modes(600, 4, 1), modes(600, 4, 2))
    assert precision > 0.8
    assert recall > 0.8


def test_precision_and_recall_of_what_lies_apart() -> None:
    assert precision_recall(modes(100, 4, 0), modes(100, 4, 1, first=4)) == (0.0, 0.0)


def test_kinds_that_are_never_made_lower_recall_only() -> None:
    true = modes(600, 4, 0)
    all_made, some = precision_recall(modes(600, 4, 1), true), precision_recall(modes(600, 2, 1), true)
    assert some[0] > all_made[0] - 0.05
    assert some[1] == pytest.approx(all_made[1] / 2, abs=0.05), "two of four kinds are there"


def test_kinds_that_are_wrong_lower_precision_only() -> None:
    true = modes(600, 4, 0)
    half_wrong = torch.cat([modes(600, 4, 1), modes(600, 4, 2, first=4)])
    precision, recall = precision_recall(half_wrong, true)
    assert precision == pytest.approx(precision_recall(modes(600, 4, 1), true)[0] / 2, abs=0.05)
    assert recall > 0.8


def test_precision_counts_the_kth_neighbour() -> None:
    # True points at 0, 1, 3, 7 on a line: the first neighbour is 1, 1, 2, 4 away, the second 3, 2, 3, 6.
    true = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    made = torch.tensor([[2.5], [-2.0], [-4.0], [12.0], [14.0]])
    assert precision_recall(made, true, k=1)[0] == pytest.approx(1 / 5)
    assert precision_recall(made, true, k=2)[0] == pytest.approx(3 / 5)


def test_bad_features_are_told() -> None:
    for distance in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=r"\[5, 3\] and \[5, 4\]; expected"):
            distance(normal(5, 3), normal(5, 4))
        with pytest.raises(ValueError, match="at least 2"):
            distance(normal(1, 3), normal(5, 3))
    with pytest.raises(ValueError, match="3-th neighbour"):
        precision_recall(normal(3, 3), normal(9, 3))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip.load(CLIP)


def test_fresh_drawings_are_near_each_other_and_noise_is_not(clip: Clip) -> None:
    held = fresh.fresh(clip, 48, seed=5)
    assert held.drawn.frechet is None
    assert held.drawn.kernel is not None
    assert len(held.prompts) == len(held.seeds) == len(held.features) == 48
    assert held.features.square().mean() == pytest.approx(1)
    assert min(held.drawn.precision, held.drawn.recall) > 0.4
    noise = torch.rand(48, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    apart = fresh.closeness(fresh.features(clip, noise), held.features)
    assert apart.kernel is not None
    assert apart.kernel > 10 * abs(held.drawn.kernel)
    assert apart.recall == 0  # precision tells less: what CLIP makes of noise lies amid the few true pictures


def test_scores_know_which_caption_is_whose(clip: Clip) -> None:
    held = fresh.fresh(clip, 32)
    scenes = fresh._scenes(32, [0, 0])
    right = torch.cat(fresh.scores(clip, as_tensor(scenes, 64), held.prompts))
    wrong = torch.cat(fresh.scores(clip, as_tensor(scenes, 64), held.prompts[1:] + held.prompts[:1]))
    assert right.mean() == pytest.approx(held.drawn_score)
    assert ((right >= 0) & (right <= 100)).all()
    assert right.mean() > wrong.mean() + 10


def test_fresh_drawings_are_those_of_the_seed(clip: Clip) -> None:
    first, again, other = (fresh.fresh(clip, 8, seed=seed, language="zh") for seed in (1, 1, 2))
    assert first.prompts == again.prompts != other.prompts
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)
    with pytest.raises(ValueError, match="at least 8"):
        fresh.fresh(clip, 3)


def test_many_pictures_are_held_to_the_frechet_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "ENOUGH", 100)
    found = fresh.closeness(normal(100, 8), normal(100, 8, 1))
    assert found.kernel is None
    assert found.frechet == frechet_distance(normal(100, 8), normal(100, 8, 1))
    assert fresh.closeness(normal(99, 8), normal(100, 8, 1)).frechet is None


def test_fid_without_its_weights_says_what_is_missing(tmp_path: Path) -> None:
    pictures = torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="weights-inception-2015-12-05-6726825d.pth"):
        inception_fid(pictures, pictures, tmp_path / "none.pth")
    (tmp_path / "other.pth").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="other.pth does not hold"):
        inception_fid(pictures, pictures, tmp_path / "other.pth")


@pytest.mark.slow
def test_fid_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in the file that users bring give the distance of that network's features."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("inception", ["2048"], str(tmp_path / "empty.pth"))
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)  # torch's own lets the features fade away
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    true = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    read = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(tmp_path / "weights.pth"))
    features = [read((pictures * 255).round().byte()).double() for pictures in (true * 0.5, true)]
    expected = frechet_distance(*features)
    assert expected > 1e-3
    assert inception_fid(true * 0.5, true, tmp_path / "weights.pth", batch=2) == pytest.approx(expected, rel=1e-3)
