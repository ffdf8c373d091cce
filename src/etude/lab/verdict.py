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
