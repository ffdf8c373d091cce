"""Runs: plan, resume, measure, judge. What the commands do, from Python.

>>> from etude.lab import compare
>>> board = compare("digits", methods=["naive_bayes_probe"], seeds=5)  # doctest: +SKIP
>>> board.winner  # doctest: +SKIP
'logistic_regression'
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.core import EtudeError, require
from etude.lab.board import Board
from etude.lab.execute import execute
from etude.lab.ledger import Ledger
from etude.lab.plan import CLASS_FILES, Plan, make_plan
from etude.lab.row import Run
from etude.lab.score import make_board
from etude.lab.trial import now
from etude.tasks.base import Dataset

__all__ = ["board_of", "compare", "keep", "run_plan", "try_method"]

Progress = Callable[[int, int, str], object]


def try_method(
    method: str,
    data: str | Path,
    *,
    against: str | None = None,
    task: str | None = None,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
    settings: Sequence[str] = (),
    labels_metric: str | None = None,
    descriptions: str | None = None,
    seeds: int = 5,
    tune: int = 3,
    budget_s: float | None = None,
    metric: str | None = None,
    margin: float | None = None,
    jobs: int = 1,
    on: str = "local",
    ledger: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Board:
    """A fair trial of one method against a baseline on a data set: ``etude try``.

    Args:
        method: slug, key or arXiv id; `data`: built-in name or file.
        against: a baseline of the task or another method; by default the task's first.
        settings: what the training part is changed by, such as ("noise=0.4",); see
            ``etude.tasks.settings.RULES``.
        labels_metric, descriptions: files about the classes; see ``etude.lab.classes``.
        seeds: number of paired seeds; `tune`: configurations per arm, the default included.
        budget_s: wall time of each fit that is trained by steps, instead of equal steps.
        metric, margin: by default the task's headline and that metric's own region.
        jobs: processes; `on`: "local", "ray" or "ray://host:port".
        ledger: path or URL; fresh: forget what an equal run has measured.

    Raises:
        EtudeError: bad input; nothing has been fitted then.
    """
    return compare(
        data, methods=[method], against=against, task=task, target=target, kinds=kinds,
        missing=missing, settings=settings, labels_metric=labels_metric,
        descriptions=descriptions, seeds=seeds, tune=tune, budget_s=budget_s, metric=metric,
        margin=margin, jobs=jobs, on=on, ledger=ledger, fresh=fresh, progress=progress,
    )  # fmt: skip


def compare(
    data: str | Path,
    *,
    methods: Sequence[str] | None = None,
    against: str | None = None,
    task: str | None = None,
    target: str | None = None,
    kinds: Mapping[str, str] | None = None,
    missing: str = "error",
    settings: Sequence[str] = (),
    labels_metric: str | None = None,
    descriptions: str | None = None,
    seeds: int = 5,
    tune: int = 3,
    budget_s: float | None = None,
    metric: str | None = None,
    margin: float | None = None,
    jobs: int = 1,
    on: str = "local",
    ledger: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Board:
    """The same for several methods at once, Holm-corrected: ``etude compare``.

    `methods` None means every method that answers the task and can meet the data, and the other
    baselines of the task; the rest is named in ``Board.skipped``. Other arguments as in
    ``try_method``.
    """
    plan, dataset = make_plan(
        data, methods=methods, task=task, against=against, seeds=seeds, tune=tune,
        budget_s=budget_s, metric=metric, margin=margin, target=target, kinds=kinds,
        missing=missing, settings=settings, labels_metric=labels_metric,
        descriptions=descriptions,
    )  # fmt: skip
    return run_plan(plan, dataset, jobs=jobs, on=on, ledger=ledger, fresh=fresh, progress=progress)


def run_plan(
    plan: Plan,
    data: Dataset,
    *,
    jobs: int = 1,
    on: str = "local",
    ledger: str | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Board:
    """Measure what the ledger does not hold yet, then judge.

    A run that was killed goes on where it was: every row is written as soon as it exists, and
    the same plan has the same id.
    """
    require(1 <= jobs <= 256, "jobs", "from 1 to 256", jobs)
    book = Ledger(ledger)
    if fresh:
        book.delete(plan.id)
    book.start(Run(id=plan.id, command=command_of(plan), spec=plan.spec(), started=now()))
    execute(plan, data, ledger, jobs=jobs, on=on, progress=progress or (lambda *_: None))
    board = make_board(book.run(plan.id), book.rows(plan.id))
    failed = all(entry.value is None for entry in board.entries)
    book.finish(plan.id, "failed" if failed else "finished")
    return make_board(book.run(plan.id), book.rows(plan.id))


def command_of(plan: Plan) -> str:
    """The command that measures this plan."""
    words = ["etude", "compare", plan.source, "--task", plan.task]
    words += ["--methods", ",".join(name.rpartition(".")[2] for name in plan.methods)]
    words += ["--against", plan.baseline, "--seeds", str(plan.seeds), "--tune", str(plan.tune)]
    words += ["--metric", plan.metric]
    if plan.margin is not None:
        words += ["--margin", f"{plan.margin:g}"]
    if plan.budget_s is not None:
        words += ["--budget", f"{plan.budget_s:g}s"]
    if plan.reading["target"]:
        words += ["--target", plan.reading["target"]]
    for column, kind in plan.reading["kinds"].items():
        words += ["--as", f"{column}={kind}"]
    if plan.reading["missing"] != "error":
        words += ["--missing", plan.reading["missing"]]
    for setting in plan.settings:
        words += ["--setting", setting]
    for name in CLASS_FILES:
        if name in plan.reading:
            words += [f"--{name.replace('_', '-')}", plan.reading[name]]
    return shlex.join(words)


def board_of(run: str, ledger: str | None = None) -> Board:
    """The leaderboard of an earlier run, by its id, a unique beginning of it, or "latest".

    Raises:
        EtudeError: no such run, or one that ``etude verify`` made.
    """
    book = Ledger(ledger)
    found = book.run(run)
    if found.spec.get("kind") != "trial":
        raise EtudeError(f"run {found.id} is evidence of etude verify, not a trial: no leaderboard")
    return make_board(found, book.rows(found.id))


def keep(
    run: str, to: str | Path, method: str | None = None, ledger: str | None = None
) -> dict[str, Any]:
    """Fit a run's winner (or `method`) on all its rows and write it as a folder.

    The configuration is the one whose validation score was best on average over the seeds.

    Returns:
        method, folder, metric, value, label, bytes.

    Raises:
        EtudeError: unknown run or method, or the data has changed since the run.
    """
    from etude.lab.keeping import keep_winner

    return keep_winner(board_of(run, ledger), Ledger(ledger), Path(to), method)
