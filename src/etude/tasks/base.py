"""What tasks and the lab hand to each other: data, one split of it, a metric, a claim's pair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from etude.core import EtudeError

__all__ = ["METRICS", "Dataset", "Metric", "Pair", "Split", "split_rows"]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A checked data set: finite numbers, class ids, and how the raw columns became both.

    Attributes:
        x: (N, D) float32 features; an image is flattened in (C, H, W) order.
        y: (N,) int64 class ids, or None.
        classes: the K class names, by id; () without labels.
        image_shape: (C, H, W) where a row is an image, else None.
        tokens: (N, T, D') float32 where each sample is a set of token vectors, else None.
        schema: how raw columns became `x` (JSON values), for data info and for serving.
        hash: sha256 of the content: equal content, equal hash, whatever the file's name.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    tokens: np.ndarray | None = None
    schema: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return len(self.classes)


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts; both arms of a seed see exactly the same ones."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(data: Dataset, seed: int, *, validation: float = 0.2, test: float = 0.2) -> Split:
    """Shuffle and cut the rows, each class in the same shares.

    Raises:
        EtudeError: a class has too few rows to be in all three parts.
    """
    generator = np.random.default_rng([seed, 20_11])
    groups = np.zeros(len(data.x), dtype=np.int64) if data.y is None else data.y
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    for group in np.unique(groups):
        rows = generator.permutation(np.flatnonzero(groups == group))
        n_test, n_validation = round(len(rows) * test), round(len(rows) * validation)
        if min(n_test, n_validation, len(rows) - n_test - n_validation) < 1:
            what = f"class {data.classes[group]!r} has" if data.classes else "the data has"
            raise EtudeError(
                f"{data.name}: {what} {len(rows)} row(s); a split into train, validation and "
                "test needs at least 3 of each class: add rows or drop the class"
            )
        cut = np.split(rows, [n_test, n_test + n_validation])
        for part, piece in zip(parts, (cut[2], cut[1], cut[0]), strict=True):
            part.append(piece)
    train, held, tested = (generator.permutation(np.concatenate(part)) for part in parts)
    return Split(train, held, tested)


@dataclass(frozen=True)
class Metric:
    """A figure with its unit, its direction and its region of practical equivalence.

    `margin` is absolute in the metric's unit; where `relative`, a share of the baseline's mean.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"]
    margin: float
    relative: bool = False
    label: str = ""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "share", "higher", 0.005),
        Metric("balanced_accuracy", "share", "higher", 0.005),
        Metric("log_loss", "nats", "lower", 0.01, relative=True),
        Metric("recall_at_1", "share", "higher", 0.005),
        Metric("recall_at_10", "share", "higher", 0.005),
        Metric("precision_at_1", "share", "higher", 0.005),
        Metric("precision_at_5", "share", "higher", 0.005),
        Metric("mean_average_precision", "share", "higher", 0.005),
        Metric("normalized_mutual_information", "share", "higher", 0.005),
        Metric("macro_f1", "share", "higher", 0.005),
        Metric("micro_f1", "share", "higher", 0.005),
        Metric("auroc", "share", "higher", 0.005),
        Metric("fpr_at_95_tpr", "share", "lower", 0.01),
        Metric("tnr_at_95_tpr", "share", "higher", 0.01),
        Metric("spearman", "correlation", "higher", 0.02),
        Metric("regret", "share", "lower", 0.005),
        Metric("candidates", "documents", "lower", 0.01, relative=True),
        Metric("queries_per_s", "1/s", "higher", 0.01, relative=True),
        Metric("seconds", "s", "lower", 0.01, relative=True),
        Metric("bytes", "bytes", "lower", 0.01, relative=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One seed's two values of a claim: what an experiment's ``measure(seed)`` returns.

    `baseline_name` is the card's baseline or a further one; `setting` tells several
    measurements of one claim apart ("dim=8", "40 % label noise").
    """

    metric: str
    ours: float
    baseline: float
    baseline_name: str
    data: str
    setting: str = ""
    ours_s: float = 0.0
    baseline_s: float = 0.0
