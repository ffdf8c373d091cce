"""Reconstruction error at equal sparsity: CEL0, hard, half and soft thresholds on image patches.

Data: patches of 8 x 8 pixels of the two photographs that come with scikit-learn, gray and
whitened; the upper 70 % of each picture for training, the rest, whitened by itself, for testing.
Every rule learns a dictionary of 128 units (twice the pixels) from the same 40 batches of 100
patches, with the same steps, at four weights of its own; for each, 500 test patches give the
share of active units and the squared error as a share of the patches' squared length. Along these
four points (logarithms, straight lines between them) the error is read off at 8 % and at 4 % of
active units, so
that no rule's way of counting its weight matters and none is favored by a choice of it.

The first pair is CEL0 against soft at 8 %. "soft_debiased" has soft's active units, their values
fitted again by least squares, against CEL0's values as they are, which are those where its rounds
end, and in a last pair a share against CEL0's fitted again, too. "soft_256_units" is soft with a
dictionary twice as large, read off at the same share, which are twice as many active units.
"hard" and "half" are the other rules against CEL0.
"""

from __future__ import annotations

import time
from functools import cache

import numpy as np

from etude.core import require
from etude.embeddings import SparseCoder, whiten_patches
from etude.tasks.base import Pair

__all__ = ["measure"]

EDGE, N_TRAIN, N_TEST = 8, 4_000, 500
WEIGHTS = {
    "cel0": (0.02, 0.05, 0.11, 0.2),
    "soft": (0.2, 0.35, 0.55, 0.8),
    "hard": (0.01, 0.02, 0.04, 0.08),
    "half": (0.07, 0.13, 0.22, 0.35),
    "soft_256_units": (0.2, 0.35, 0.55, 0.8),
}
SHARES = (0.08, 0.04)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is CEL0 against soft at 8 % of active units."""
    upper, lower = _photographs()
    train = whiten_patches(upper, N_TRAIN, size=EDGE, seed=2 * seed)
    test = whiten_patches(lower, N_TEST, size=EDGE, seed=2 * seed + 1)
    curves: dict[str, list[tuple[float, float]]] = {"soft_debiased": [], "cel0_debiased": []}
    spent = {}
    for name, weights in WEIGHTS.items():
        start, curves[name] = time.perf_counter(), []
        for weight in weights:
            coder = SparseCoder(
                n_units=256 if name == "soft_256_units" else 128, penalty=name[:4],
                weight=weight, step=0.05, lr=0.05, n_steps=40, batch_size=100, seed=seed,
            ).fit(train)  # fmt: skip
            codes = coder.transform(test)
            curves[name].append(_point(test, codes, coder.reconstruct(codes)))
            if name in ("soft", "cel0"):
                again = _debiased(test, codes, coder.dictionary_)
                curves[f"{name}_debiased"].append(_point(test, codes, again))
        spent[name] = time.perf_counter() - start
    spent["soft_debiased"], spent["cel0_debiased"] = spent["soft"], spent["cel0"]

    def pair(ours: str, other: str, share: float, setting: str = "") -> Pair:
        return Pair(
            metric="reconstruction_error", ours=_at(curves[ours], share),
            baseline=_at(curves[other], share), baseline_name=other, data="sample_images",
            setting=f"{share:.0%} active{setting}", ours_s=spent[ours], baseline_s=spent[other],
        )  # fmt: skip

    others = ("soft", "soft_debiased", "soft_256_units", "hard", "half")
    found = [pair("cel0", name, share) for share in SHARES for name in others]
    return found + [
        pair("cel0_debiased", "soft_debiased", share, ", both fitted again") for share in SHARES
    ]


def _point(y: np.ndarray, codes: np.ndarray, again: np.ndarray) -> tuple[float, float]:
    """Share of active units, and squared error as a share of the squared length."""
    return float((codes != 0).mean()), float(((y - again) ** 2).sum() / (y**2).sum())


def _debiased(y: np.ndarray, codes: np.ndarray, dictionary: np.ndarray) -> np.ndarray:
    """Least squares on the active units of each patch."""
    again = np.zeros_like(y)
    for n, active in enumerate(codes != 0):
        columns = dictionary[:, active]
        again[n] = columns @ np.linalg.lstsq(columns, y[n], rcond=None)[0]
    return again


def _at(curve: list[tuple[float, float]], share: float) -> float:
    """The error at a share of active units."""
    active, error = np.log(np.array(sorted(curve))).T
    inside = active[0] <= np.log(share) <= active[-1]
    require(inside, "share of active units", f"within {np.exp(active[[0, -1]])}", share)
    return float(np.exp(np.interp(np.log(share), active, error)))


@cache
def _photographs() -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower parts of both photographs, gray."""
    from sklearn.datasets import load_sample_images

    gray = np.stack(load_sample_images().images).mean(axis=-1)
    cut = int(0.7 * gray.shape[1])
    return gray[:, :cut], gray[:, cut:]
