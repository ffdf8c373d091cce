"""The comparer: from values paired by seed to a verdict.

The differences d_i = ours_i - baseline_i of n paired seeds have mean d and standard deviation
s. Splits of one data set overlap in their training parts, so d_i are not independent; with
r = n_test / n_train the variance of d is estimated by

    v = (1/n + r) * s^2                                                     (1)

(Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 2003; r = 0
where the runs are independent). The interval is Student's t on n - 1 degrees of freedom:

    d -/+ t_{1 - level/2, n-1} * sqrt(v)                                    (2)

"better" or "worse" where the interval lies outside the region of practical equivalence
[-margin, margin], "tie" where it lies inside, "undecided" otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from etude.core import require

__all__ = ["Verdict", "judge", "judge_all", "power"]

Better = Literal["higher", "lower"]
MOST_SEEDS = 10_000
TARGET_POWER = 0.8


@dataclass(frozen=True)
class Verdict:
    """What the paired values say.

    Attributes:
        label: "better", "worse", "tie" or "undecided", for ours against the baseline.
        difference: mean of ours - baseline, in the metric's unit (negative where ours is less).
        low, high: the interval (2) of that difference; infinite with one seed.
        p_superior: probability of superiority: the share of seeds where ours is the better
            one, ties counting half.
        seeds_needed: seeds in all with which a difference and spread as seen would be decided
            with probability 0.8; the number given when decided; None when more than 10,000.
        n_seeds, margin, level: what the verdict was made from.
    """

    label: Literal["better", "worse", "tie", "undecided"]
    difference: float
    low: float
    high: float
    p_superior: float
    seeds_needed: int | None
    n_seeds: int
    margin: float
    level: float


def _quantile(level: float, n: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 1 - level / 2))


def _tail(statistic: float, n: int) -> float:
    from scipy.special import stdtr

    return float(2 * stdtr(n - 1, -statistic))


def _decides(difference: float, margin: float) -> float:
    """How far the mean lies from the nearest edge of the region that it would be decided by."""
    return abs(abs(difference) - margin)


def power(
    effect: float, sd: float, n_seeds: int, *, margin: float = 0.0, overlap: float = 0.0,
    level: float = 0.05,
) -> float:  # fmt: skip
    """Probability that `n_seeds` pairs call a true gain `effect` (in the better direction) better.

    `sd` is the standard deviation of one seed's difference. Under (1) and (2) the statistic
    (d - margin) / sqrt(v) is a noncentral t (overlap = 0; an overlap scales the spread).
    """
    from scipy.special import nctdtr

    require(n_seeds >= 2, "n_seeds", "at least 2", n_seeds)
    require(sd > 0, "sd", "positive", sd)
    root = math.sqrt(1 / n_seeds + overlap)
    # The estimator's own spread is s/sqrt(n) while (1) divides by the wider sqrt(v).
    widened = root * math.sqrt(n_seeds)
    shift = (effect - margin) / sd * math.sqrt(n_seeds)
    threshold = _quantile(level, n_seeds) * widened
    probability = 1.0 - float(nctdtr(n_seeds - 1, shift, threshold))
    # The noncentral t overflows for far shifts, where the normal is exact enough.
    return (
        probability if math.isfinite(probability) else 0.5 * math.erfc((threshold - shift) / 2**0.5)
    )


def _seeds_needed(gap: float, sd: float, overlap: float, level: float) -> int | None:
    """The fewest seeds whose power against a gap of this size reaches ``TARGET_POWER``."""
    if gap <= 0:
        return None
    low, high = 2, 4
    while power(gap, sd, high, overlap=overlap, level=level) < TARGET_POWER:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while low < high:
        middle = (low + high) // 2
        if power(gap, sd, middle, overlap=overlap, level=level) < TARGET_POWER:
            low = middle + 1
        else:
            high = middle
    return low if low <= MOST_SEEDS else None


def judge(
    ours: Sequence[float] | np.ndarray,
    baseline: Sequence[float] | np.ndarray,
    *,
    better: Better = "higher",
    margin: float = 0.0,
    overlap: float = 0.0,
    level: float = 0.05,
) -> Verdict:
    """Judge `ours` against `baseline`, values paired by seed (equal positions, equal seeds).

    Args:
        better: the direction of the metric.
        margin: half-width of the region of practical equivalence, in the metric's unit.
        overlap: n_test / n_train of (1), where the seeds re-split one data set; else 0.
        level: 1 - the confidence of the interval.

    Raises:
        EtudeError: different lengths, nothing given, or values that are not finite.
    """
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    require(a.ndim == 1 and a.size > 0, "ours", "a non-empty sequence of numbers", ours)
    require(a.shape == b.shape, "baseline", f"{a.size} values paired with ours", baseline)
    require(bool(np.isfinite(a).all()), "ours", "finite numbers", ours)
    require(bool(np.isfinite(b).all()), "baseline", "finite numbers", baseline)
    require(better in ("higher", "lower"), "better", "'higher' or 'lower'", better)
    require(margin >= 0 and math.isfinite(margin), "margin", "finite and at least 0", margin)
    require(overlap >= 0 and math.isfinite(overlap), "overlap", "finite and at least 0", overlap)
    require(0 < level < 1, "level", "between 0 and 1", level)
    n, d = a.size, a - b
    sign = 1.0 if better == "higher" else -1.0
    mean = float(d.mean())
    superior = float((np.sign(sign * d) / 2 + 0.5).mean())
    if n == 1:
        return Verdict(
            "undecided", mean, -math.inf, math.inf, superior, None, n, margin, level
        )  # one seed says nothing about spread
    sd = float(d.std(ddof=1))
    half = _quantile(level, n) * sd * math.sqrt(1 / n + overlap)  # (1), (2)
    low, high = mean - half, mean + half
    gain_low, gain_high = sorted((sign * low, sign * high))
    needed: int | None = n
    label: Literal["better", "worse", "tie", "undecided"]
    if gain_low > margin:
        label = "better"
    elif gain_high < -margin:
        label = "worse"
    elif gain_low >= -margin and gain_high <= margin:
        label = "tie"
    else:
        label = "undecided"
        needed = _seeds_needed(_decides(mean, margin), sd, overlap, level)
        # The estimate aims at power 0.8 from scratch; what is undecided needs at least one more.
        needed = None if needed is None else max(needed, n + 1)
    return Verdict(label, mean, low, high, superior, needed, n, margin, level)


def judge_all(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    better: Better = "higher",
    margin: float = 0.0,
    overlap: float = 0.0,
    level: float = 0.05,
) -> dict[str, Verdict]:
    """Judge many methods at once by Holm's step-down, so that they err together at `level`.

    Methods are taken in the order of their p-values, the smallest first. The k-th is judged at
    ``level / (m - k)``, k from 0; from the first that is neither better nor worse on, the
    rest keep that level. Every verdict, its interval too, is ``judge``'s at that level.
    """

    def p_value(name: str) -> float:
        verdict = judge(*pairs[name], better=better, margin=margin, overlap=overlap, level=level)
        gap, half = abs(verdict.difference) - margin, (verdict.high - verdict.low) / 2
        if not math.isfinite(half):
            return 1.0
        if half == 0:
            return 0.0 if gap > 0 else 1.0
        return _tail(gap / half * _quantile(level, verdict.n_seeds), verdict.n_seeds)

    order = sorted(pairs, key=p_value)
    verdicts: dict[str, Verdict] = {}
    step = 0
    for name in order:
        share = level / (len(order) - step)
        verdicts[name] = judge(
            *pairs[name], better=better, margin=margin, overlap=overlap, level=share
        )
        if verdicts[name].label in ("better", "worse"):
            step += 1
        else:
            # Step-down stops here: later, weaker ones keep this level.
            for later in order[len(verdicts) :]:
                verdicts[later] = judge(
                    *pairs[later], better=better, margin=margin, overlap=overlap, level=share
                )
            break
    return {name: verdicts[name] for name in pairs}
