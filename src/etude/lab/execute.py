"""Where the trials of a plan run: in this process, in several, or on Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from etude.core import EtudeError
from etude.lab.ledger import Ledger
from etude.lab.plan import Plan, configurations, open_data
from etude.lab.row import Row
from etude.lab.trial import Trial
from etude.tasks import arm_of, get_task
from etude.tasks.base import METRICS, Dataset

__all__ = ["batches", "execute", "units"]

Progress = Callable[[int, int, str], object]


def units(plan: Plan) -> list[tuple[int, str]]:
    """(seed, arm) in the order of measuring: the arms in turn at each seed (A B A B)."""
    names = [plan.baseline, *plan.methods]
    return [(seed, name) for seed in range(plan.seeds) for name in names]


def batches(plan: Plan) -> list[list[tuple[int, str]]]:
    """What one worker does in turn. Where a rate or a time decides, all arms of a seed: side by
    side, or on machines of different speed, they could not be compared."""
    every = units(plan)
    if METRICS[plan.metric].unit in ("s", "1/s"):
        return [[unit for unit in every if unit[0] == seed] for seed in range(plan.seeds)]
    return [[unit] for unit in every]


def ticks(plan: Plan, name: str) -> int:
    """How many steps of progress one trial of this arm makes."""
    return len(configurations(arm_of(get_task(plan.task), name), plan.tune)) + 1


def execute(
    plan: Plan, data: Dataset, ledger: str | None, *, jobs: int, on: str, progress: Progress
) -> None:
    """Measure every trial of the plan that the ledger does not hold; rows go in at once."""
    book = Ledger(ledger)
    known = book.rows(plan.id)
    if on == "local" and jobs == 1:
        _here(plan, data, book, known, progress)
        return
    done, total = 0, sum(ticks(plan, name) for _, name in units(plan))
    if on == "local":
        finished = _processes(plan, ledger, known, jobs)
    elif on == "ray" or on.startswith("ray://"):
        finished = _ray(plan, data, book, known, on)
    else:
        raise EtudeError(f"on must be local, ray or ray://host:port, got {on!r}")
    for seed, name in finished:
        done += ticks(plan, name)
        progress(done, total, f"{name}, seed {seed}")


def _here(plan: Plan, data: Dataset, book: Ledger, known: list[Row], progress: Progress) -> None:
    done, total = 0, sum(ticks(plan, name) for _, name in units(plan))

    for seed, name in units(plan):
        label = f"{name}, seed {seed}"

        def tick(label: str = label) -> None:
            nonlocal done
            done += 1
            progress(done, total, label)

        progress(done, total, label)
        Trial(plan, data, name, seed, known, book.add).run(tick)


# One process of a pool serves many trials: it reads the data once.
_worker: dict[str, Any] = {}


def _start_worker(plan: Plan, ledger: str | None, known: list[Row], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    data = open_data(plan.source, plan.reading, task=plan.task)
    _worker.update(plan=plan, data=data, book=Ledger(ledger), known=known)


def _work(batch: list[tuple[int, str]]) -> list[tuple[int, str]]:
    known, book = _worker["known"], _worker["book"]
    for seed, name in batch:
        Trial(_worker["plan"], _worker["data"], name, seed, known, book.add).run()
    return batch


def _processes(
    plan: Plan, ledger: str | None, known: list[Row], jobs: int
) -> Iterator[tuple[int, str]]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Spawned, not forked: a fork after torch has used its threads hangs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_start_worker,
        initargs=(plan, ledger, known, threads),
    ) as pool:  # fmt: skip
        futures = [pool.submit(_work, batch) for batch in batches(plan)]
        for future in as_completed(futures):
            yield from future.result()


def _ray_trial(
    plan: Plan, data: Dataset, known: list[Row], seed: int, name: str
) -> tuple[int, str, list[Row]]:
    rows: list[Row] = []
    Trial(plan, data, name, seed, known, rows.extend).run()
    return seed, name, rows


class _InTurn:
    """An actor of Ray's does what it is asked in order, in one process."""

    trial = staticmethod(_ray_trial)


def _ray(
    plan: Plan, data: Dataset, book: Ledger, known: list[Row], on: str
) -> Iterator[tuple[int, str]]:
    """The workers may be on other machines: rows come back with a trial and go in here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EtudeError('--on ray needs Ray: pip install "etude[ray]"') from None
    address = None if on == "ray" else on
    try:
        ray.init(
            address=address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError:
        raise EtudeError(
            f"{on} does not answer; start a cluster there (ray start --head), with the Python and "
            "Ray of this process, and set RAY_AUTH_MODE=token here if it has a token"
        ) from None
    try:
        shared = ray.put(plan), ray.put(data), ray.put(known)
        task: Any = ray.remote(_ray_trial)
        actor: Any = ray.remote(num_cpus=1)(_InTurn)
        waiting: dict[Any, Any] = {}  # an actor ends, and makes room, when nobody holds it
        for batch in batches(plan):
            worker = actor.remote() if len(batch) > 1 else None
            ask = task if worker is None else worker.trial
            waiting |= {ask.remote(*shared, *unit): worker for unit in batch}
            del ask, worker
        while waiting:
            ready, _ = ray.wait(list(waiting))
            seed, name, rows = ray.get(ready[0])
            del waiting[ready[0]]
            book.add(rows)
            yield seed, name
    except ray.exceptions.RayTaskError:
        raise  # of the trial itself
    except ray.exceptions.RayError as error:
        why = str(error).partition(". ")[0].splitlines()[0]
        raise EtudeError(f"Ray lost a worker: {why}; give the command again to go on") from None
    finally:
        ray.shutdown()
