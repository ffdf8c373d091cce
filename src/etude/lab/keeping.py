"""Keep: fit a run's winner on all its rows and write it, with its evidence, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from etude.core import EtudeError, cards
from etude.lab.artifact import check_free, save_artifact
from etude.lab.board import Board, Entry
from etude.lab.ledger import Ledger
from etude.lab.plan import Plan, open_data
from etude.lab.report import report_html
from etude.lab.score import best_knobs
from etude.tasks import arm_of, get_task
from etude.tasks.base import Dataset, Split

__all__ = ["data_of", "keep_winner"]


def data_of(board: Board) -> Dataset:
    """The data of a run, read again.

    Raises:
        EtudeError: it is gone, or its content is not what the run measured.
    """
    plan = Plan.of(board.run.spec)
    data = open_data(plan.source, plan.reading, task=plan.task)
    if data.hash != plan.data_hash:
        raise EtudeError(
            f"{plan.source} has changed since run {board.run.id} "
            f"(sha256 {data.hash[:12]}, was {plan.data_hash[:12]}): run the comparison again"
        )
    return data


def keep_winner(board: Board, book: Ledger, to: Path, method: str | None) -> dict[str, Any]:
    """See ``etude.lab.run.keep``."""
    check_free(to)
    entry = _entry(board, method)
    if entry.value is None:
        raise EtudeError(f"{entry.method} failed at every seed of run {board.run.id}")
    plan, rows = Plan.of(board.run.spec), book.rows(board.run.id)
    data, task = data_of(board), get_task(plan.task)
    everything, none = np.arange(len(data.x)), np.arange(0)
    knobs = best_knobs(plan, rows, entry.method)
    predictor = task.fit(
        arm_of(task, entry.method), data, Split(everything, none, none), knobs, seed=0,
        budget_s=plan.budget_s,
    )  # fmt: skip
    verdict, card = entry.verdict, cards().get(entry.method)
    facts = {
        "title": entry.title,
        "arxiv": card.arxiv if card else None,
        "method": entry.method,
        "task": plan.task,
        "metric": plan.metric,
        "value": entry.value,
        "baseline": plan.baseline,
        "difference": verdict.difference if verdict else None,
        "interval": _finite([verdict.low, verdict.high]) if verdict else None,
        "verdict": verdict.label if verdict else "baseline",
        "seeds": plan.seeds,
        "knobs": knobs,
        "fitted_on": f"all {len(data.x)} rows; the evidence is from held-out parts of splits",
        "data": plan.data,
        "data_hash": plan.data_hash,
        "run": board.run.id,
    }
    schema = dict(data.schema)
    if predictor.facts.get("given_tokens"):  # even where features were given beside the sets
        schema["sets"] = predictor.facts["token_dim"]
    folder = save_artifact(
        to, predictor=predictor, schema=schema, classes=data.classes, card=facts,
        rows=rows, report_html=report_html(board, rows),
    )  # fmt: skip
    return {
        "method": entry.method, "folder": str(folder), "metric": plan.metric,
        "value": entry.value, "label": facts["verdict"], "bytes": predictor.n_bytes,
    }  # fmt: skip


def _finite(interval: list[float]) -> list[float] | None:
    """The interval, or None: one seed has no end to its interval, and JSON no infinity."""
    return interval if np.isfinite(interval).all() else None


def _entry(board: Board, method: str | None) -> Entry:
    wanted = board.winner if method is None else method
    for entry in board.entries:
        if wanted in (entry.method, entry.method.rpartition(".")[2]):
            return entry
    names = ", ".join(entry.method for entry in board.entries)
    raise EtudeError(f"method must be one of run {board.run.id}: {names}; got {wanted!r}")
