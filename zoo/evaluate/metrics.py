"""How near a set of pictures comes to a set of true ones, from features of both: distances, precision and recall.

Features are [pictures, width] of any network; all is computed in float64, whatever they come in. `zoo.evaluate.fresh`
says which pictures and which features the zoo compares.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # as torch-fidelity publishes them
ROWS = 512  # of a matrix of distances that are made at once


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance of the Gaussians fitted to two sets of features [n, width], [m, width] (arXiv 1706.08500).

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), at least 0 and without upper limit. It is biased: of fewer pictures
    it is larger, so only sets of equal sizes compare, and small ones are for `kernel_distance`.

    Raises:
        ValueError: features that are not two sets of one width, each of at least 2.
    """
    a, b = _sets(a, b)
    covariances = a.T.cov(), b.T.cov()
    first, second = (covariance.reshape(a.shape[1], a.shape[1]) for covariance in covariances)
    # tr (A B)^(1/2) is the sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which is symmetric as A B is not.
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, float(apart + first.trace() + second.trace() - 2 * mixed))


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """The squared maximum mean discrepancy of features [n, width], [m, width] (arXiv 1801.01401, with its kernel).

    k(x, y) = (x.y / width + 1)^3. Unbiased: of few pictures it is less certain but not larger, and around 0, below it
    as often as above, where both sets come from one source.

    Raises:
        ValueError: features that are not two sets of one width, each of at least 2.
    """
    a, b = _sets(a, b)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def among(x: Tensor) -> Tensor:  # each with every other, not with itself
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(among(a) + among(b) - 2 * kernel(a, b).mean())


def precision_recall(made: Tensor, true: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features [n, width] against true ones [m, width] (arXiv 1904.06991).

    Precision: the share of what is made that lies within the reach of something true, the distance to whose k-th
    nearest neighbour is its reach. Recall: the share of what is true within the reach of something made. Pictures that
    are wrong lower precision, kinds that are never made lower recall. Both also depend on n and m: compare equal ones.

    Raises:
        ValueError: features that are not two sets of one width, or one that has not more than `k`.
    """
    made, true = _sets(made, true)
    if not 1 <= k < min(len(made), len(true)):
        raise ValueError(f"the {k}-th neighbour needs k from 1 and sets of more, got {len(made)} and {len(true)}")
    return _covered(made, true, k), _covered(true, made, k)


def inception_fid(made: Tensor, true: Tensor, weights: str | Path, batch: int = 32) -> float:
    """The usual FID of pictures [n, 3, height, width] in [0, 1], by torchmetrics (arXiv 1706.08500).

    weights: the file `INCEPTION`, the network that FID is defined by. It is never fetched, and it knows photographs: of
    drawings the zoo's own features tell more.

    Raises:
        ValueError: the file or one of the libraries is not there, or the file does not hold the weights.
    """
    check_inception(weights)
    from torchmetrics.image.fid import FrechetInceptionDistance

    try:
        torch.load(weights, map_location="cpu", weights_only=True)  # nothing in a pickle may run below
        metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(weights)).set_dtype(
            torch.float64
        )
    except Exception as error:
        raise ValueError(f"{weights} does not hold the weights of FID's Inception-v3: {error}") from error
    for pictures, real in ((true, True), (made, False)):
        for part in pictures.split(batch):
            metric.update((part.clamp(0, 1) * 255).round().byte(), real=real)
    return float(metric.compute())


def check_inception(weights: str | Path) -> None:
    """Whether `inception_fid` has what it needs, without reading it.

    Raises:
        ValueError: the file or one of the libraries is not there.
    """
    if not Path(weights).is_file():
        raise ValueError(
            f"there are no Inception weights at {str(weights)!r}: FID is defined by {INCEPTION} (github.com/toshas/"
            "torch-fidelity, releases). Give the path of that file, or leave FID out"
        )
    try:
        import torch_fidelity  # noqa: F401 - torchmetrics asks for it only when it is too late for a clear message
        import torchmetrics.image.fid  # noqa: F401
    except ImportError as error:
        raise ValueError(f"FID needs torchmetrics and torch-fidelity: pip install '.[metrics]' ({error})") from error


def _sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features have shapes {list(a.shape)} and {list(b.shape)}; expected [n, width] and [m, width] of one "
            "width, n and m at least 2"
        )
    return a.double().cpu(), b.double().cpu()


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of `points` that lie within the reach of one of `centres`."""
    reach = torch.cat([_distances(part, centres).kthvalue(k + 1).values for part in centres.split(ROWS)])  # 0: itself
    inside = [(_distances(part, centres) <= reach).any(1) for part in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By differences: by products, what is equal would lie a little apart.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
