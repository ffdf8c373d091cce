"""From the rows of a run to its leaderboard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etude.core import cards
from etude.lab.board import Board, Entry
from etude.lab.plan import Plan
from etude.lab.row import Row, Run
from etude.lab.verdict import Verdict, judge_all
from etude.tasks import get_task
from etude.tasks.base import METRICS

__all__ = ["best_knobs", "make_board", "margin_of"]

Values = dict[int, float]


def margin_of(metric: str, given: float | None, baseline: Sequence[float]) -> float:
    """The half-width of the region of practical equivalence, in the metric's unit."""
    if given is not None:
        return given
    known = METRICS[metric]
    if not known.relative:
        return known.margin
    return known.margin * abs(sum(baseline) / len(baseline)) if baseline else 0.0


def make_board(run: Run, rows: Sequence[Row]) -> Board:
    """The leaderboard of a run, from its rows on the test part."""
    plan = Plan.of(run.spec)
    rows = [row for row in rows if row.seed < plan.seeds]
    final = "tuned" if plan.tune > 1 else "default"
    names = [plan.baseline, *plan.methods]
    tested = [row for row in rows if row.split == "test"]
    final_values = {name: _values(tested, name, final, plan.metric) for name in names}
    default_values = {name: _values(tested, name, "default", plan.metric) for name in names}
    margin = margin_of(plan.metric, plan.margin, list(final_values[plan.baseline].values()))
    verdicts = _verdicts(plan, final_values, margin)
    default_verdicts = _verdicts(plan, default_values, margin)
    entries = [
        _entry(
            plan, name, final, rows, final_values, default_values[name],
            verdicts.get(name), default_verdicts.get(name),
        )
        for name in names
    ]  # fmt: skip
    sign = 1 if plan.better == "higher" else -1
    entries.sort(key=lambda e: -math.inf if e.value is None else sign * e.value, reverse=True)
    winners = [e.method for e in entries if e.verdict and e.verdict.label == "better"]
    return Board(
        run=run, task=plan.task, data=plan.data, n_rows=plan.n_rows, metric=plan.metric,
        unit=METRICS[plan.metric].unit, better=plan.better, margin=margin,
        baseline=plan.baseline, seeds=tuple(range(plan.seeds)), entries=tuple(entries),
        winner=winners[0] if winners else plan.baseline, skipped=plan.skipped,
    )  # fmt: skip


def _values(tested: Sequence[Row], name: str, setting: str, metric: str) -> Values:
    return {
        row.seed: row.value
        for row in tested
        if (row.method, row.setting, row.metric) == (name, setting, metric)
        and row.value is not None
    }


def _verdicts(plan: Plan, values: Mapping[str, Values], margin: float) -> dict[str, Verdict]:
    """Holm over the methods; one that failed at any seed gets no verdict."""
    baseline = values[plan.baseline]
    pairs = {}
    for name in plan.methods:
        if len(values[name]) == len(baseline) == plan.seeds:
            seeds = sorted(baseline)
            pairs[name] = ([values[name][s] for s in seeds], [baseline[s] for s in seeds])
    better = METRICS[plan.metric].better
    return judge_all(pairs, better=better, margin=margin, overlap=plan.overlap)


def _entry(
    plan: Plan, name: str, final: str, rows: Sequence[Row], values: Mapping[str, Values],
    default: Values, verdict: Verdict | None, default_verdict: Verdict | None,
) -> Entry:  # fmt: skip
    own = values[name]
    tested = [r for r in rows if (r.method, r.split, r.setting) == (name, "test", final)]
    headline = [r for r in tested if r.metric == plan.metric and r.value is not None]
    others = {
        metric: _mean([r.value for r in tested if r.metric == metric and r.value is not None])
        for metric in dict.fromkeys(r.metric for r in tested)
        if metric != plan.metric
    }
    baseline = values[plan.baseline]
    own_arms = get_task(plan.task).baselines  # an index may have a plainer title than its paper
    return Entry(
        method=name,
        title=own_arms[name].title if name in own_arms else cards()[name].title,
        arm="baseline" if name == plan.baseline else "ours",
        value=_mean(list(own.values())),
        default_value=_mean(list(default.values())),
        verdict=verdict,
        default_verdict=default_verdict,
        fit_s=_mean([r.fit_s for r in headline]) or 0.0,
        infer_s=_mean([r.infer_s for r in headline]) or 0.0,
        bytes=round(_mean([r.bytes for r in headline]) or 0),
        failures=tuple(f"seed {r.seed}: {r.status}" for r in tested if r.value is None),
        values=own,
        differences={s: own[s] - baseline[s] for s in sorted(own) if s in baseline},
        params=best_knobs(plan, rows, name),
        other_metrics={metric: value for metric, value in others.items() if value is not None},
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def best_knobs(plan: Plan, rows: Sequence[Row], name: str) -> dict[str, Any]:
    """The configuration whose mean over the seeds' validation parts is best."""
    scores: dict[str, list[float]] = {}
    for row in rows:
        of_plan = row.split == "validation" and row.seed < plan.seeds
        if of_plan and (row.method, row.metric) == (name, plan.metric):
            key = json.dumps(dict(row.params), sort_keys=True)
            scores.setdefault(key, []).append(math.nan if row.value is None else row.value)
    sign = 1 if plan.better == "higher" else -1
    # Where a task chose by itself, the seeds may differ: what most of them chose counts.
    most = max(map(len, scores.values()), default=0)
    whole = {
        key: sign * sum(v) / len(v)
        for key, v in scores.items()
        if len(v) == most and not any(map(math.isnan, v))
    }
    return json.loads(max(whole, key=lambda key: whole[key])) if whole else {}
