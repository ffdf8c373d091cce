"""What tasks and the lab hand to each other: data, one split of it, a metric, a claim's pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from etude.core import EtudeError, get_state, n_bytes

__all__ = [
    "METRICS",
    "Arm",
    "Dataset",
    "Metric",
    "Pair",
    "Predictor",
    "Split",
    "Task",
    "split_rows",
]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A checked data set: finite numbers, class ids, and how the raw columns became both.

    Attributes:
        x: (N, D) float32 features; an image is flattened in (C, H, W) order.
        y: (N,) int64 class ids, or None.
        classes: the K class names, by id; () without labels.
        image_shape: (C, H, W) where a row is an image, else None.
        tokens: (N, T, D') float32 where each sample is a set of token vectors; (N,) objects, each
            (T, D') float32, where the sets differ in size; else None.
        items: (N, E) float32 where each row is a query and has its right item; else None.
        labels: (N, L) bool where a row has any number of L labels; then `y` is None and
            `classes` are the names of the labels.
        class_distances: (K, K) distances between the classes where they were given, else None.
        descriptions: phrases that describe each class where they were given, else None.
        schema: how raw columns became `x` (JSON values), for data info and for serving.
        hash: sha256 of the content: equal content, equal hash, whatever the file's name.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int, int] | None = None
    tokens: np.ndarray | None = None
    items: np.ndarray | None = None
    labels: np.ndarray | None = None
    class_distances: np.ndarray | None = None
    descriptions: Mapping[str, Sequence[str]] | None = None
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
        Metric("micro_average_precision", "share", "higher", 0.005),
        Metric("normalized_mutual_information", "share", "higher", 0.005),
        Metric("macro_f1", "share", "higher", 0.005),
        Metric("micro_f1", "share", "higher", 0.005),
        Metric("auroc", "share", "higher", 0.005),
        Metric("fpr_at_95_tpr", "share", "lower", 0.01),
        Metric("tnr_at_95_tpr", "share", "higher", 0.01),
        Metric("spearman", "correlation", "higher", 0.02),
        Metric("distance_correlation", "correlation", "higher", 0.02),
        Metric("hub_skewness", "skewness", "lower", 0.05),
        Metric("code_entropy", "bits", "higher", 0.02, relative=True),
        Metric("average_compatibility", "share", "higher", 0.05),
        Metric("reconstruction_error", "share", "lower", 0.01, relative=True),
        Metric("regret", "share", "lower", 0.005),
        Metric("leakage", "share", "lower", 0.01),
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


@dataclass(frozen=True)
class Arm:
    """One side of a trial: a method or a baseline, with the knobs that tuning may turn.

    `search` gives each knob's values, the default first; `name` is a card's key or the name
    of one of the task's baselines.
    """

    name: str
    title: str
    method: Callable[..., Any]
    search: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass
class Predictor:
    """A fitted arm with all that it needs to answer for new rows.

    `parts` are its stateful objects by name (method, network, classifier), `arrays` what the
    task found in the data (scaling, codes); `facts` and `knobs` are JSON values from which the
    task can build the parts again.
    """

    task: str
    arm: str
    facts: dict[str, Any]
    knobs: dict[str, Any]
    parts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(B, D) rows as in ``Dataset.x`` -> what the task answers for each of them.

        Where ``facts["given_tokens"]`` is true, token sets as in ``Dataset.tokens``.
        """
        from etude.tasks import get_task

        return get_task(self.task).predict(self, x)

    def config(self) -> dict[str, Any]:
        """JSON values that ``restore`` needs beside ``state``."""
        return {"task": self.task, "arm": self.arm, "facts": self.facts, "knobs": self.knobs}

    def state(self) -> dict[str, np.ndarray]:
        """Every array, its name prefixed by its part."""
        found = {f"arrays.{name}": array for name, array in self.arrays.items()}
        for part, thing in self.parts.items():
            found |= {f"{part}.{name}": array for name, array in get_state(thing).items()}
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole state."""
        arrays = sum(array.nbytes for array in self.arrays.values())
        return arrays + sum(n_bytes(part) for part in self.parts.values())


class Task(Protocol):
    """What a kind of method is asked to do, and how that is measured.

    Attributes:
        name, question: the task's name, and what it asks in one sentence.
        metrics: names of ``METRICS``; the first is the headline.
        baselines: arms by name; the first is the default.
    """

    name: str
    question: str
    metrics: tuple[str, ...]

    @property
    def baselines(self) -> Mapping[str, Arm]:
        """Arms by name; the first is the default."""

    def why_not(self, arm: Arm, data: Dataset) -> str | None:
        """Why this arm cannot meet this data, or None."""

    def split(self, data: Dataset, seed: int) -> Split:
        """The three parts for one seed."""

    def fit(
        self, arm: Arm, data: Dataset, split: Split, knobs: Mapping[str, Any], *, seed: int,
        budget_s: float | None,
    ) -> Predictor:  # fmt: skip
        """Fit on ``split.train`` only."""

    def measure(
        self, predictor: Predictor, data: Dataset, split: Split, part: str
    ) -> dict[str, float]:
        """Every metric on ``split.validation`` or ``split.test``."""

    def assemble(
        self, arm: Arm, facts: Mapping[str, Any], knobs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The unfitted parts."""

    def predict(self, predictor: Predictor, x: np.ndarray) -> np.ndarray:
        """The answer for new rows."""
