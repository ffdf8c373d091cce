r"""RankMe: the effective rank of the embeddings, as a quality score that needs no labels.

Self-supervised training has no held-out accuracy, and its loss is not comparable between
hyper-parameters: a temperature or a loss weight changes the scale of the loss itself. What goes
wrong in such training is dimensional collapse, the embeddings fill a few directions only, and
a linear probe cannot get more classes apart than there are directions. So measure how many
directions are in use, smoothly, by the entropy of the singular values:

    RankMe(Z) = exp(-sum_k p_k log p_k)                                                     (1)
    p_k = sigma_k(Z) / sum_j sigma_j(Z) + eps                                               (2)

Z: (N, D) embeddings, the output of the projector on samples of the pre-training data, neither
centered nor normalized; sigma_k: its min(N, D) singular values, not squared. With eps = 0 this
is the effective rank of Roy and Vetterli (EUSIPCO 2007), between 1 and min(N, D). Of several
runs of one method the one with the highest RankMe is selected; of equals, the one with the
smallest (or the largest) value of the hyper-parameter.

A high rank is necessary and not sufficient: an untrained network can have it. Values compare
only between runs of one method with equally wide embeddings, and N must exceed D by far.

Source: Garrido, Balestriero, Najman and LeCun, "RankMe: Assessing the Downstream Performance of
Pretrained Self-Supervised Representations by Their Rank", ICML 2023, arXiv:2210.02885,
equation (1), which holds our (1) and (2); 25,600 samples suffice there.
Not found in the paper: when two ranks count as equal. Here: within the share `tolerance` of the
highest, 0 by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from etude.core import Card, require

__all__ = ["rankme", "RankMeSelector", "effective_rank_curve"]

CARD = Card(
    slug="rankme",
    family="theory",
    title="RankMe: Assessing the downstream performance of pretrained self-supervised "
    "representations by their rank",
    year=2022,
    arxiv="2210.02885",
    move="Judge a self-supervised run without labels by the exponential of the entropy of its "
    "embeddings' singular values, and select the run with the highest.",
    task="experiment",
    claim="Among small SimCLR and VICReg runs on digits, the run with the highest RankMe has a "
    "higher linear-probe accuracy than the run with the lowest validation loss.",
    baseline="lowest_loss",
    metric="accuracy",
    better="higher",
    published="In words (abstract): selection by RankMe has nearly no reduction in final "
    "performance against selection by labels.",
    fidelity="full",
    cost="L",
    data=("digits",),
)


def _matrix(embeddings: Any) -> np.ndarray:
    """The embeddings as finite float64 (N, D), divided by the largest magnitude."""
    array = embeddings.detach().cpu().numpy() if hasattr(embeddings, "detach") else embeddings
    array = np.asarray(array, dtype=np.float64)
    require(array.ndim == 2 and array.size > 0, "embeddings", "(N, D)", array)
    require(bool(np.isfinite(array).all()), "embeddings", "finite", array)
    largest = float(np.abs(array).max())
    require(largest > 0, "embeddings", "not all zero: a collapsed run has no rank", array)
    return array / largest


def rankme(embeddings: Any, *, eps: float = 1e-7) -> float:
    """Equations (1) and (2): embeddings (N, D), array or tensor -> effective rank.

    Raises:
        EtudeError: not (N, D), not finite, or all zero.
    """
    require(eps >= 0, "eps", "at least 0", eps)
    sigma = np.linalg.svd(_matrix(embeddings), compute_uv=False)
    p = sigma / sigma.sum() + eps  # (2)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))  # (1)


def effective_rank_curve(
    embeddings: Any, sizes: Sequence[int] | None = None, *, eps: float = 1e-7, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """RankMe of growing parts of the rows: whether there are samples enough.

    embeddings (N, D) -> sizes (S,) and their effective ranks (S,). The parts are nested, out of
    one permutation by `seed`. sizes: by default doubling from about D to N.

    Raises:
        EtudeError: as `rankme`, or a size outside 1..N.
    """
    Z = _matrix(embeddings)
    N, D = Z.shape
    if sizes is None:
        sizes = [size for size in (N >> k for k in range(N.bit_length())) if size >= min(D, N)]
    ordered = np.array(sorted(sizes), dtype=np.int64)
    inside = len(ordered) > 0 and ordered[0] >= 1 and ordered[-1] <= N
    require(bool(inside), "sizes", f"in 1..{N}, at least one", sizes)
    order = np.random.default_rng(seed).permutation(N)
    return ordered, np.array([rankme(Z[order[:size]], eps=eps) for size in ordered])


class RankMeSelector:
    """Choose among runs (or checkpoints) of one method by their embeddings alone.

    max_samples: rows that are used of each run (a fixed choice by `seed`); tolerance: runs
    within this share of the highest rank count as equal, of which `prefer` takes the one with
    the "smallest" or "largest" hyper-parameter.
    """

    def __init__(
        self,
        *,
        eps: float = 1e-7,
        max_samples: int = 25_600,
        tolerance: float = 0.0,
        prefer: str = "smallest",
        seed: int = 0,
    ) -> None:
        require(eps >= 0, "eps", "at least 0", eps)
        require(max_samples >= 1, "max_samples", "at least 1", max_samples)
        require(0 <= tolerance < 1, "tolerance", "in [0, 1)", tolerance)
        require(prefer in ("smallest", "largest"), "prefer", "'smallest' or 'largest'", prefer)
        self.eps = eps
        self.max_samples = max_samples
        self.tolerance = tolerance
        self.prefer = prefer
        self.seed = seed

    def fit(
        self, embeddings: Sequence[Any], values: Sequence[float] | None = None
    ) -> RankMeSelector:
        """embeddings: R runs, each (N_r, D); values (R,): the hyper-parameter, else the order.

        Fitted: `rankmes_` (R,), `selected_` the position of the chosen run.

        Raises:
            EtudeError: no runs, unequal widths, fewer rows than columns, or as `rankme`.
        """
        runs = [_matrix(run) for run in embeddings]
        require(len(runs) > 0, "embeddings", "one (N, D) array a run", embeddings)
        widths = sorted({run.shape[1] for run in runs})
        require(len(widths) == 1, "embeddings", "equally wide, or ranks do not compare", widths)
        fewest = min(min(len(run) for run in runs), self.max_samples)
        rule = f"at least D = {widths[0]} rows a run, or the rows cap the rank"
        require(fewest >= widths[0], "embeddings", rule, fewest)
        knob = np.arange(len(runs)) if values is None else np.asarray(values, dtype=np.float64)
        require(knob.shape == (len(runs),), "values", "one number a run", knob)
        self.rankmes_ = np.array([rankme(self._rows(run), eps=self.eps) for run in runs])
        equal = self.rankmes_ >= (1 - self.tolerance) * self.rankmes_.max()
        order = knob if self.prefer == "smallest" else -knob
        self.selected_ = int(np.where(equal, order, np.inf).argmin())
        return self

    def _rows(self, run: np.ndarray) -> np.ndarray:
        """At most `max_samples` rows; the same ones for runs of equal length."""
        if len(run) <= self.max_samples:
            return run
        chosen = np.random.default_rng(self.seed).permutation(len(run))[: self.max_samples]
        return np.asarray(run[chosen])
