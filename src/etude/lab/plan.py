"""The plan of a run: everything that decides its result, checked before anything is fitted."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from etude import __version__
from etude.core import EtudeError, require
from etude.lab.classes import with_class_facts
from etude.lab.data import load_dataset
from etude.lab.pairs import load_pairs
from etude.lab.row import fingerprint
from etude.tasks import arm_of, arms, get_task, metrics_of, notes_of, task_of
from etude.tasks.base import METRICS, Arm, Dataset, Split
from etude.tasks.settings import written

__all__ = ["Plan", "configurations", "make_plan", "open_data"]

MOST_SEEDS, MOST_CONFIGURATIONS = 1000, 100
CLASS_FILES = ("labels_metric", "descriptions")
UNLABELED = ("search", "encode")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Equal plans give equal results; `id` is their fingerprint.

    `tune` is the number of configurations per arm, the default one included; with 1 nothing
    is tuned. `overlap` is n_test / n_train of the splits. `budget_s` is the wall time of one
    fit of what is trained by steps, or None for equal steps. `settings` are words such as
    "noise=0.4"; `data` names them too.
    """

    task: str
    source: str
    data: str
    data_hash: str
    reading: Mapping[str, Any]
    n_rows: int
    overlap: float
    methods: tuple[str, ...]
    baseline: str
    metric: str
    better: str
    margin: float | None
    seeds: int
    tune: int
    budget_s: float | None
    settings: tuple[str, ...] = ()
    version: str = __version__
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Twelve hex digits.

        The place of the data does not count, its content does; nor does the number of seeds,
        so that the same command with more of them measures only the new ones.
        """
        facts = self.spec()
        for name in ("source", "skipped", "data", "seeds", "notes"):
            facts.pop(name)
        # Files of class facts count by their content too: it is in the data's hash.
        reading = {k: v for k, v in self.reading.items() if k not in CLASS_FILES}
        facts["reading"] = reading
        if not self.settings:
            facts.pop("settings")
        return fingerprint(facts)

    def spec(self) -> dict[str, Any]:
        """JSON values, the `spec` of the ledger's run."""
        facts = {**asdict(self), "methods": list(self.methods), "settings": list(self.settings)}
        facts["notes"] = list(self.notes)
        return {"kind": "trial", **facts}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Plan:
        """The plan whose ``spec()`` this is."""
        facts = {k: v for k, v in spec.items() if k != "kind"}
        lists = {name: tuple(facts.get(name, ())) for name in ("methods", "settings", "notes")}
        return cls(**{**facts, **lists})


def make_plan(
    source: str | Path,
    *,
    methods: Sequence[str] | None,
    task: str | None = None,
    against: str | None = None,
    seeds: int = 5,
    tune: int = 3,
    budget_s: float | None = None,
    metric: str | None = None,
    margin: float | None = None,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
    settings: Sequence[str] = (),
    labels_metric: str | None = None,
    descriptions: str | None = None,
) -> tuple[Plan, Dataset]:
    """Check the words of a command against the data, and say what will be done.

    Without `methods`, every method of the task and every other baseline of it is tried.

    Raises:
        EtudeError: an unknown method, task, setting, baseline or metric; a number out of bounds;
            data that cannot be read, or that a named method or the baseline cannot meet.
    """
    require(1 <= seeds <= MOST_SEEDS, "seeds", f"from 1 to {MOST_SEEDS}", seeds)
    require(1 <= tune <= MOST_CONFIGURATIONS, "tune", f"from 1 to {MOST_CONFIGURATIONS}", tune)
    good = budget_s is None or (math.isfinite(budget_s) and budget_s > 0)
    require(good, "budget", "a positive time such as 60s", budget_s)
    chosen = get_task(task or (task_of(methods[0]) if methods else "probe"), settings)
    if methods is not None and not methods:
        raise EtudeError("name at least one method")
    baseline = next(iter(chosen.baselines)) if against is None else arm_of(chosen, against).name
    contestants = (
        [*arms(chosen), *chosen.baselines.values()] if methods is None
        else [arm_of(chosen, name) for name in methods]
    )  # fmt: skip
    require(margin is None or margin >= 0, "margin", "at least 0", margin)
    reading: dict[str, Any] = {"target": target, "kinds": dict(kinds or {}), "missing": missing}
    files = {"labels_metric": labels_metric, "descriptions": descriptions}
    reading |= {name: path for name, path in files.items() if path is not None}
    data = open_data(str(source), reading, task=chosen.name)
    known = metrics_of(chosen, data)
    measure = metric or known[0]
    require(measure in known, "metric", f"one of {', '.join(known)}", measure)
    split = chosen.split(data, 0)
    meeting, skipped = [], {}
    for arm in [arm_of(chosen, baseline), *contestants]:
        reason = chosen.why_not(arm, data)
        if reason is None:
            meeting.append(arm.name)
        elif methods is not None or arm.name == baseline:
            raise EtudeError(f"{arm.name} {reason}")
        else:
            skipped[arm.name] = reason
    meeting = [name for name in dict.fromkeys(meeting) if name != baseline]
    if not meeting:
        raise EtudeError(f"{data.name}: no method is left to try against {baseline}")
    words = written(getattr(chosen, "settings", {}))
    plan = Plan(
        task=chosen.name, source=str(source),
        data=f"{data.name} ({', '.join(words)})" if words else data.name, data_hash=data.hash,
        reading=reading, n_rows=len(data.x), overlap=_overlap(split, len(data.x), words),
        methods=tuple(meeting), baseline=baseline, metric=measure,
        better=METRICS[measure].better, margin=margin, seeds=seeds, tune=tune,
        budget_s=budget_s, settings=words, skipped=skipped, notes=notes_of(chosen, data),
    )  # fmt: skip
    return plan, data


def open_data(source: str, reading: Mapping[str, Any], *, task: str) -> Dataset:
    """The data of a plan, read with its options; what a search reads need not have labels."""
    if task == "match":
        return load_pairs(
            source, target=reading["target"], kinds=reading["kinds"], missing=reading["missing"]
        )
    data = load_dataset(
        source, target=reading["target"], kinds=reading["kinds"], missing=reading["missing"],
        need_labels=task not in UNLABELED, token_sets=task == "search",
    )  # fmt: skip
    return with_class_facts(data, reading.get("labels_metric"), reading.get("descriptions"))


def _overlap(split: Split, n_rows: int, settings: Sequence[str]) -> float:
    """n_test / n_train, where all rows count that could have been trained on.

    A setting that keeps five of them a class does not make the splits of two seeds more alike:
    what they share are test rows, and those are as many as without it.
    """
    n_train = len(split.train)
    if settings:
        n_train = max(n_train, n_rows - len(split.validation) - len(split.test))
    return len(split.test) / n_train


def configurations(arm: Arm, n: int) -> list[dict[str, Any]]:
    """The first `n` configurations: the default, then others in an order fixed by the name.

    The same for every seed, so that a configuration's mean over seeds is a mean.
    """
    grid = [
        dict(zip(arm.search, values, strict=True))
        for values in itertools.product(*arm.search.values())
    ]
    others = np.random.default_rng(zlib.crc32(arm.name.encode())).permutation(len(grid) - 1) + 1
    return [grid[0], *(grid[i] for i in others[: n - 1])]
