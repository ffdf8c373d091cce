"""The two records of the ledger: one measurement, and the run that it belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Row", "Run", "fingerprint"]


def fingerprint(value: Any) -> str:
    """Twelve hex digits that are equal for equal JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement, written as soon as it exists; failures are rows too.

    `arm` is "ours" or "baseline"; `setting` is "default" or "tuned" (or an experiment's own
    setting); `split` is "validation" or "test"; `value` is None exactly where `status` is not
    "ok" (then `status` says what failed). Times are in seconds, `at` is UTC in ISO 8601.
    """

    run: str
    method: str
    arm: Literal["ours", "baseline"]
    task: str
    data: str
    data_hash: str
    split: Literal["validation", "test"]
    seed: int
    metric: str
    value: float | None
    unit: str
    fit_s: float
    infer_s: float
    bytes: int
    status: str
    params: Mapping[str, Any]
    setting: str
    config_hash: str
    version: str
    machine: str
    at: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One command's worth of trials. Equal commands on equal data have the same `id`.

    `spec` holds everything that decides the result (JSON values): kind ("trial" or
    "verify"), task, data source and reading options, methods, baseline, metric, margin,
    seeds, tune, budget_s.
    """

    id: str
    command: str
    spec: Mapping[str, Any]
    started: str
    finished: str | None = None
    state: Literal["running", "finished", "failed"] = "running"
    extra: Mapping[str, Any] = field(default_factory=dict)
