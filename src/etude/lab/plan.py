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
from etude.core import EtudeError, card_of, require
from etude.lab.data import load_dataset
from etude.lab.row import fingerprint
from etude.tasks import TASKS, arm_of, arms, get_task
from etude.tasks.base import METRICS, Arm, Dataset, Task

__all__ = ["Plan", "configurations", "make_plan", "open_data"]

MOST_SEEDS, MOST_CONFIGURATIONS = 1000, 100


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Equal plans give equal results; `id` is their fingerprint.

    `tune` is the number of configurations per arm, the default one included; with 1 nothing
    is tuned. `overlap` is n_test / n_train of the splits. `budget_s` is the wall time of one
    fit of what is trained by steps, or None for equal steps.
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
    version: str = __version__
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Twelve hex digits.

        The place of the data does not count, its content does; nor does the number of seeds,
        so that the same command with more of them measures only the new ones.
        """
        facts = self.spec()
        for name in ("source", "skipped", "data", "seeds"):
            facts.pop(name)
        return fingerprint(facts)

    def spec(self) -> dict[str, Any]:
        """JSON values, the `spec` of the ledger's run."""
        return {"kind": "trial", **asdict(self), "methods": list(self.methods)}

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Plan:
        """The plan whose ``spec()`` this is."""
        facts = {k: v for k, v in spec.items() if k != "kind"}
        return cls(**{**facts, "methods": tuple(facts["methods"])})


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
) -> tuple[Plan, Dataset]:
    """Check the words of a command against the data, and say what will be done.

    Raises:
        EtudeError: an unknown method, task, baseline or metric; a number out of bounds; data
            that cannot be read, or that a named method cannot meet.
    """
    require(1 <= seeds <= MOST_SEEDS, "seeds", f"from 1 to {MOST_SEEDS}", seeds)
    require(1 <= tune <= MOST_CONFIGURATIONS, "tune", f"from 1 to {MOST_CONFIGURATIONS}", tune)
    good = budget_s is None or (math.isfinite(budget_s) and budget_s > 0)
    require(good, "budget", "a positive time such as 60s", budget_s)
    chosen = _task(task, methods)
    baseline = _baseline(chosen, against)
    contestants = arms(chosen) if methods is None else [arm_of(chosen, name) for name in methods]
    measure = metric or chosen.metrics[0]
    require(measure in chosen.metrics, "metric", f"one of {', '.join(chosen.metrics)}", measure)
    require(margin is None or margin >= 0, "margin", "at least 0", margin)
    reading = {"target": target, "kinds": dict(kinds or {}), "missing": missing}
    data = open_data(str(source), reading, need_labels=chosen.name != "search")
    meeting, skipped = [], {}
    for arm in contestants:
        reason = chosen.why_not(arm, data)
        if reason is None:
            meeting.append(arm.name)
        elif methods is not None:
            raise EtudeError(f"{arm.name} {reason}")
        else:
            skipped[arm.name] = reason
    meeting = [name for name in dict.fromkeys(meeting) if name != baseline]
    if not meeting:
        raise EtudeError(f"{data.name}: no method is left to try against {baseline}")
    split = chosen.split(data, 0)
    plan = Plan(
        task=chosen.name, source=str(source), data=data.name, data_hash=data.hash,
        reading=reading, n_rows=len(data.x), overlap=len(split.test) / len(split.train),
        methods=tuple(meeting), baseline=baseline, metric=measure,
        better=METRICS[measure].better, margin=margin, seeds=seeds, tune=tune,
        budget_s=budget_s, skipped=skipped,
    )  # fmt: skip
    return plan, data


def open_data(source: str, reading: Mapping[str, Any], *, need_labels: bool = True) -> Dataset:
    """The data of a plan, read with its options."""
    return load_dataset(
        source, target=reading["target"], kinds=reading["kinds"], missing=reading["missing"],
        need_labels=need_labels,
    )  # fmt: skip


def _task(name: str | None, methods: Sequence[str] | None) -> Task:
    """The task asked for, or the one that the first method answers, or probe."""
    if name is not None or not methods:
        return get_task(name or "probe")
    for method in methods:
        known = [task for task in TASKS if method in get_task(task).baselines]
        answers = known[0] if known else card_of(method).task
        if answers in TASKS:
            return get_task(answers)
        raise EtudeError(
            f"{card_of(method).key} answers no task on a file; "
            f"etude verify {card_of(method).slug} runs its own experiment"
        )
    raise EtudeError("name at least one method")


def _baseline(task: Task, against: str | None) -> str:
    return next(iter(task.baselines)) if against is None else arm_of(task, against).name


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
