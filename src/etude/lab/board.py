"""The leaderboard of a run: what tables, reports and JSON all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etude.lab.row import Run
from etude.lab.verdict import Verdict

__all__ = ["Board", "Entry"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method's line. Values are means over the seeds that succeeded, on the test part.

    `verdict` is None for the baseline's own line, and where fewer pairs than two exist.
    `values` and `differences` are per seed, by seed; `default_value` is the mean with the
    default configuration, `value` with the tuned one (equal when nothing was tuned).
    """

    method: str
    title: str
    arm: str
    value: float | None
    default_value: float | None
    verdict: Verdict | None
    default_verdict: Verdict | None
    fit_s: float
    infer_s: float
    bytes: int
    failures: tuple[str, ...]
    values: Mapping[int, float] = field(default_factory=dict)
    differences: Mapping[int, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    other_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Board:
    """Entries best first (by mean value; failed ones last); `winner` is a method's key.

    The winner is the best method whose verdict is "better"; where none is, the baseline.
    """

    run: Run
    task: str
    data: str
    n_rows: int
    metric: str
    unit: str
    better: str
    margin: float
    baseline: str
    seeds: tuple[int, ...]
    entries: tuple[Entry, ...]
    winner: str
    skipped: Mapping[str, str] = field(default_factory=dict)
