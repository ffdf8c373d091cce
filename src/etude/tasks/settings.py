"""Settings of a trial: ``noise=0.4`` and the like change the training part, never the test part.

What a setting does depends on the rows and on the seed alone, so that both arms of a seed meet
the same rows and the same labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from etude.core import EtudeError, require
from etude.tasks.base import Dataset, Split, split_rows

__all__ = [
    "RULES", "Rule", "altered", "few", "flipped", "long_tail", "read_settings", "split_for",
    "written",
]  # fmt: skip

Settings = Mapping[str, float]
FEWEST_CLASSES = 6  # of "unseen": two each to train on, to tune on and to test on


@dataclass(frozen=True)
class Rule:
    """A setting's meaning, and the numbers it takes; without `example` it takes none."""

    what: str
    example: str = ""
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @property
    def bounds(self) -> str:
        """The numbers in words."""
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.low:g} to {self.high:g}"


RULES: dict[str, Rule] = {
    "unseen": Rule("a third of the classes has no training rows; other ones are tuned on"),
    "noise": Rule("so large a share of the training labels is wrong", "0.4", 0.01, 0.95),
    "imbalance": Rule(
        "the largest class of the training part is so many times the smallest", "20", 1.5, 1000
    ),
    "shots": Rule("so many training rows a class", "5", 1, 10_000, whole=True),
    "transductive": Rule("methods may look at all rows of the test part at once, unlabeled"),
    "recall": Rule(
        "an index takes its cheapest setting that finds so large a share of the ten best",
        "0.95",
        0.1,
        1.0,
    ),
    "bytes": Rule("a code takes at most so many bytes a vector", "48", 1, 1_000_000),
    "zero_shot": Rule("no labels are learned from: methods get the names of the classes"),
}
ALONE = "zero_shot"  # has no training labels that another setting could change


def read_settings(task: str, words: Sequence[str], allowed: Sequence[str]) -> dict[str, float]:
    """``("noise=0.4", "unseen")`` -> ``{"noise": 0.4, "unseen": 1.0}``, by name.

    Raises:
        EtudeError: a name that the task does not know, a number that is out of bounds, absent or
            not wanted, a setting given twice, or two that exclude each other.
    """
    found: dict[str, float] = {}
    for word in words:
        name, equals, text = word.strip().partition("=")
        if name not in allowed:
            there = f"has {', '.join(allowed)}" if allowed else "has none"
            raise EtudeError(f"--setting {name} is no setting of the task {task}, which {there}")
        require(name not in found, f"--setting {name}", "given once", word)
        rule = RULES[name]
        if not rule.example:
            require(not equals, f"--setting {name}", "without a number", word)
            found[name] = 1.0
            continue
        if not equals:
            raise EtudeError(f"--setting {name} needs a number, such as {name}={rule.example}")
        found[name] = _number(name, text, rule)
    if ALONE in found and set(found) & {"noise", "imbalance", "shots", "unseen"}:
        raise EtudeError(f"--setting {ALONE} learns from no labels and goes with transductive only")
    if {"shots", "imbalance"} <= set(found):
        raise EtudeError("--setting shots makes all classes equal: leave imbalance out")
    return dict(sorted(found.items()))


def _number(name: str, text: str, rule: Rule) -> float:
    try:
        value = float(text)
    except ValueError:
        raise EtudeError(f"--setting {name} must be {rule.bounds}, got {text!r}") from None
    good = rule.low <= value <= rule.high and (not rule.whole or value == int(value))
    require(good, f"--setting {name}", rule.bounds, text)
    return value


def written(settings: Settings) -> tuple[str, ...]:
    """The words that ``read_settings`` reads as these settings, in one order."""
    return tuple(
        f"{name}={value:g}" if RULES[name].example else name
        for name, value in sorted(settings.items())
    )


def split_for(task: str, data: Dataset, seed: int, settings: Settings) -> Split:
    """The rows of the three parts: 60 / 20 / 20, each class in the same shares, then the settings.

    "unseen" in train: the three parts have different classes, with all of their rows. In probe:
    validation and test keep the classes trained on, and each adds classes of its own.

    Raises:
        EtudeError: no classes, too few of them, or too few rows for a setting.
    """
    if data.y is None:
        several = "has several labels a row" if data.labels is not None else "has no target"
        raise EtudeError(
            f"{data.name} {several}; {task} needs one class a row (--task train takes several)"
        )
    split = split_rows(data, seed)
    if "unseen" in settings:
        split = _unseen(task, data, split, seed)
    if "imbalance" in settings:
        kept = long_tail(split.train, data.y, settings["imbalance"], seed)
        split = replace(split, train=kept)
    if "shots" in settings:
        kept = few(split.train, data.y, int(settings["shots"]), seed, data.classes)
        split = replace(split, train=kept)
    return split


def _unseen(task: str, data: Dataset, split: Split, seed: int) -> Split:
    assert data.y is not None
    K = data.n_classes
    rule = f"used with at least {FEWEST_CLASSES} classes: a third of them to tune, a third to test"
    require(K >= FEWEST_CLASSES, "--setting unseen", rule, f"{data.name} with {K}")
    order = np.random.default_rng([seed, 20_12]).permutation(K)
    held = max(2, K // 3)
    for_test, for_validation, known = np.split(order, [held, 2 * held])
    if task == "train":
        parts = (known, for_validation, for_test)
        return Split(*(np.flatnonzero(np.isin(data.y, part)) for part in parts))

    def only(rows: np.ndarray, *classes: np.ndarray) -> np.ndarray:
        assert data.y is not None
        return rows[np.isin(data.y[rows], np.concatenate(classes))]

    return Split(
        only(split.train, known), only(split.validation, known, for_validation),
        only(split.test, known, for_test),
    )  # fmt: skip


def long_tail(rows: np.ndarray, y: np.ndarray, ratio: float, seed: int) -> np.ndarray:
    """The rows of a training part that stay so that classes shrink geometrically by `ratio`.

    The k-th of K classes, in an order of the seed's, keeps n ratio^(-k / (K - 1)) rows, where n
    is what the smallest class has.

    Raises:
        EtudeError: the smallest class would lose its last row.
    """
    generator = np.random.default_rng([seed, 20_13])
    classes, counts = np.unique(y[rows], return_counts=True)
    n = int(counts.min())
    rule = f"at most {n}, the training rows of the smallest class"
    require(ratio <= n, "--setting imbalance", rule, ratio)
    kept = []
    for k, group in enumerate(generator.permutation(classes)):
        share = ratio ** (-k / max(1, len(classes) - 1))
        own = generator.permutation(rows[y[rows] == group])
        kept.append(own[: max(1, round(n * share))])
    return generator.permutation(np.concatenate(kept))


def few(
    rows: np.ndarray, y: np.ndarray, shots: int, seed: int, classes: Sequence[str]
) -> np.ndarray:
    """`shots` training rows of each class that has any.

    Raises:
        EtudeError: a class has fewer.
    """
    generator = np.random.default_rng([seed, 20_14])
    kept = []
    for group in np.unique(y[rows]):
        own = rows[y[rows] == group]
        if len(own) < shots:
            raise EtudeError(
                f"--setting shots must be at most {len(own)}, the training rows of class "
                f"{classes[group]!r}, got {shots}"
            )
        kept.append(generator.permutation(own)[:shots])
    return generator.permutation(np.concatenate(kept))


def flipped(y: np.ndarray, n_classes: int, share: float, seed: int) -> np.ndarray:
    """(N,) class ids of which exactly a share are another class, each other one as likely."""
    generator = np.random.default_rng([seed, 20_15])
    wrong = generator.permutation(len(y))[: round(share * len(y))]
    changed = y.copy()
    changed[wrong] = (y[wrong] + generator.integers(1, n_classes, len(wrong))) % n_classes
    return changed


def altered(data: Dataset, rows: np.ndarray, settings: Settings, seed: int) -> Dataset:
    """The data as a learner sees it: labels of the training `rows` changed where a setting does."""
    if "noise" not in settings or data.y is None:
        return data
    known, ids = np.unique(data.y[rows], return_inverse=True)
    y = data.y.copy()
    y[rows] = known[flipped(ids, len(known), settings["noise"], seed)]
    return replace(data, y=y)
