"""One trial: one arm at one seed, from tuning on the validation part to the test part."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from etude.core import EtudeError
from etude.lab.plan import Plan, configurations
from etude.lab.row import Row, fingerprint
from etude.tasks import arm_of, get_task
from etude.tasks.base import METRICS, Arm, Dataset, Predictor, Split, Task

__all__ = ["Trial", "machine", "now"]


@cache
def machine() -> str:
    """What the times of a row depend on, without anything that names the computer."""
    import os

    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python " + (
        platform.python_version()
    )


def now() -> str:
    """UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Trial:
    """Measures one arm at one seed and hands every row to `emit` as soon as it exists.

    `known` are the rows that an earlier, interrupted start of the same plan has written:
    what they hold is not measured again. `busy_s` adds up the time inside fit and measure.
    """

    def __init__(
        self, plan: Plan, data: Dataset, name: str, seed: int, known: Sequence[Row],
        emit: Callable[[list[Row]], object],
    ) -> None:  # fmt: skip
        self.plan, self.data, self.seed, self.emit = plan, data, seed, emit
        self.task: Task = get_task(plan.task, plan.settings)
        self.arm: Arm = arm_of(self.task, name)
        self.split: Split = self.task.split(data, seed)
        self.known = [row for row in known if (row.method, row.seed) == (self.arm.name, seed)]
        self.busy_s = 0.0

    def run(self, tick: Callable[[], object] = lambda: None) -> None:
        """Default configuration first, then the others on validation, then the best on test.

        `tick` is called once a configuration and once for the test part.
        """
        choices = configurations(self.arm, self.plan.tune)
        scores: list[float | None] = []
        best: tuple[dict[str, Any], Predictor | None, float] | None = None
        for knobs in choices:
            score, predictor, fit_s = self._validate(knobs, is_default=knobs is choices[0])
            scores.append(score)
            top = max((self._gain(s) for s in scores[:-1] if s is not None), default=None)
            if score is not None and (top is None or self._gain(score) > top):
                best = (knobs, predictor, fit_s)
            tick()
        if self.plan.tune > 1:
            self._test_tuned(choices[0], best)
        tick()

    def _gain(self, value: float) -> float:
        return value if METRICS[self.plan.metric].better == "higher" else -value

    def _row_of(self, split: str, setting: str, knobs: Mapping[str, Any] | None) -> Row | None:
        """The headline row that an earlier start has written, or None."""
        for row in self.known:
            if (row.split, row.setting, row.metric) != (split, setting, self.plan.metric):
                continue
            if knobs is None or row.config_hash == fingerprint(knobs):
                return row
        return None

    def _validate(
        self, knobs: dict[str, Any], *, is_default: bool
    ) -> tuple[float | None, Predictor | None, float]:
        setting = "default" if is_default else "candidate"
        row = self._row_of("validation", setting, knobs)
        tested = not is_default or self._row_of("test", "default", knobs)
        if row is not None and tested:
            return row.value, None, row.fit_s
        predictor, fit_s, failure = self._fit(knobs)
        if predictor is None:
            parts = ("validation", "test") if is_default else ("validation",)
            for part in parts:
                self._fail(part, setting, knobs, fit_s, failure)
            return None, None, fit_s
        values = self._measure(predictor, "validation", setting, knobs, fit_s)
        if is_default:
            self._measure(predictor, "test", "default", knobs, fit_s)
        return (None if values is None else values[self.plan.metric]), predictor, fit_s

    def _test_tuned(
        self, default: dict[str, Any], best: tuple[dict[str, Any], Predictor | None, float] | None
    ) -> None:
        if self._row_of("test", "tuned", None) is not None:
            return
        if best is None:
            self._fail("test", "tuned", default, 0.0, "failed: no configuration could be fitted")
            return
        knobs, predictor, fit_s = best
        if knobs == default:  # already measured: the test part is opened once
            rows = [r for r in self.known if (r.split, r.setting) == ("test", "default")]
            self.emit([Row(**{**_fields(row), "setting": "tuned"}) for row in rows])
            return
        failure = ""
        if predictor is None:  # validated before an interruption: fit it again for the test
            predictor, fit_s, failure = self._fit(knobs)
        if predictor is None:
            self._fail("test", "tuned", knobs, fit_s, failure)
        else:
            self._measure(predictor, "test", "tuned", knobs, fit_s)

    def _fit(self, knobs: Mapping[str, Any]) -> tuple[Predictor | None, float, str]:
        started = time.perf_counter()
        try:
            predictor = self.task.fit(
                self.arm, self.data, self.split, knobs, seed=self.seed,
                budget_s=self.plan.budget_s,
            )  # fmt: skip
        except Exception as error:
            spent = time.perf_counter() - started
            self.busy_s += spent
            return None, spent, _said(error)
        spent = time.perf_counter() - started
        self.busy_s += spent
        limit = self.plan.budget_s
        if limit is not None and spent > limit * 1.5 + 1:
            return None, spent, f"failed: over budget, the fit took {spent:.1f} s of {limit:g} s"
        return predictor, spent, ""

    def _measure(
        self, predictor: Predictor, part: str, setting: str, knobs: Mapping[str, Any], fit_s: float
    ) -> dict[str, float] | None:
        started = time.perf_counter()
        try:
            values = self.task.measure(predictor, self.data, self.split, part)
        except Exception as error:
            self._fail(part, setting, knobs, fit_s, _said(error))
            return None
        infer_s = time.perf_counter() - started
        self.busy_s += infer_s
        rows = [
            self._row(part, setting, knobs, metric, float(value), fit_s, infer_s, predictor.n_bytes)
            for metric, value in values.items()
        ]
        # a task may choose more than was given: what it chose is what to keep
        rows = [replace(row, params={**knobs, **predictor.knobs}) for row in rows]
        self._write(rows)
        return values

    def _fail(
        self, part: str, setting: str, knobs: Mapping[str, Any], fit_s: float, status: str
    ) -> None:
        self._write([self._row(part, setting, knobs, self.plan.metric, None, fit_s, 0, 0, status)])

    def _write(self, rows: list[Row]) -> None:
        self.known.extend(rows)
        self.emit(rows)

    def _row(
        self, part: str, setting: str, knobs: Mapping[str, Any], metric: str, value: float | None,
        fit_s: float, infer_s: float, n_bytes: int, status: str = "ok",
    ) -> Row:  # fmt: skip
        plan = self.plan
        return Row(
            run=plan.id, method=self.arm.name,
            arm="baseline" if self.arm.name == plan.baseline else "ours",
            task=plan.task, data=plan.data, data_hash=plan.data_hash,
            split="test" if part == "test" else "validation", seed=self.seed, metric=metric,
            value=value, unit=METRICS[metric].unit, fit_s=fit_s, infer_s=infer_s,
            bytes=n_bytes, status=status, params=dict(knobs), setting=setting,
            config_hash=fingerprint(knobs), version=plan.version, machine=machine(), at=now(),
        )  # fmt: skip


def _fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__dataclass_fields__}


def _said(error: Exception) -> str:
    """A failure's words for its row, one line."""
    words = str(error) if isinstance(error, EtudeError) else f"{type(error).__name__}: {error}"
    return "failed: " + " ".join(words.split())[:300]
