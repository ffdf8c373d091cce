"""Tasks: what a kind of method is asked to do, and how that is measured; one file a task."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from etude.core import Card, EtudeError, card_of, cards, load, set_state
from etude.tasks.base import Arm, Dataset, Predictor, Task

__all__ = [
    "TASKS", "adopted", "arm_of", "arms", "get_task", "metrics_of", "notes_of", "restore",
    "task_of",
]  # fmt: skip

TASKS = {
    "probe": "Probe", "train": "Train", "search": "Search", "detect": "Detect", "encode": "Encode",
    "match": "Match",
}  # fmt: skip


def get_task(name: str, settings: Sequence[str] = ()) -> Task:
    """The task of that name, under settings such as ``("noise=0.4",)``.

    Raises:
        EtudeError: unknown, with the names there are; or a setting that the task does not have.
    """
    if name not in TASKS:
        raise EtudeError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    kind = getattr(importlib.import_module(f"etude.tasks.{name}"), TASKS[name])
    if not settings:
        plain: Task = kind()
        return plain
    if not hasattr(kind, "known_settings"):
        raise EtudeError(f"the task {name} has no settings, got --setting {settings[0]}")
    task: Task = kind(settings)
    return task


def metrics_of(task: Task, data: Dataset) -> tuple[str, ...]:
    """What the task measures on this data; the first decides."""
    own = getattr(task, "metrics_of", None)
    return task.metrics if own is None else tuple(own(data))


def notes_of(task: Task, data: Dataset) -> tuple[str, ...]:
    """What the task says of how it takes this data; shown below the leaderboard."""
    own = getattr(task, "notes_of", None)
    return () if own is None else tuple(own(data))


def adopted(task: Task) -> Mapping[str, Arm]:
    """Methods by key that the task wires although their card's claim needs an experiment."""
    found: Mapping[str, Arm] = getattr(task, "adopted", {})
    return found


def arm_of(task: Task, name: str) -> Arm:
    """A baseline of the task or a method by slug, key or arXiv id, as one side of a trial.

    Raises:
        EtudeError: unknown, or a method that answers another task.
    """
    if name in task.baselines:
        return task.baselines[name]
    card = card_of(name)
    if card.key in adopted(task):
        return adopted(task)[card.key]
    if card.task != task.name:
        raise EtudeError(
            f"{card.key} answers the task {card.task!r}, not {task.name!r}; "
            f"see etude info {card.slug}"
        )
    return _arm(card, task)


def arms(task: Task) -> list[Arm]:
    """Every method that answers the task."""
    own = adopted(task)
    return [
        own[card.key] if card.key in own else _arm(card, task)
        for card in cards().values()
        if card.task == task.name or card.key in own
    ]


def task_of(name: str) -> str:
    """The name of the task that a baseline or a method (slug, key, arXiv id) is tried on.

    Raises:
        EtudeError: unknown, or a method that no task can try.
    """
    for task in TASKS:
        if name in get_task(task).baselines:
            return task
    card = card_of(name)
    for task in TASKS:
        if card.task == task or card.key in adopted(get_task(task)):
            return task
    raise EtudeError(
        f"{card.key} answers no task on a file; etude verify {card.slug} runs its own experiment"
    )


def _arm(card: Card, task: Task) -> Arm:
    method = load(card)
    search: Mapping[str, tuple[Any, ...]] = card.search
    if hasattr(method, "forward") and "lr" not in search:
        # What a task trains by gradient steps has its learning rate tuned, in both arms.
        search = {**search, "lr": (3e-3, 1e-3, 1e-2)}
    return Arm(card.key, card.title, method, search)


def restore(config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> Predictor:
    """The predictor that gave ``config()`` and ``state()``.

    Raises:
        EtudeError: an unknown task or arm, or a state that does not fit.
    """
    task = get_task(config["task"])
    parts = task.assemble(arm_of(task, config["arm"]), config["facts"], config["knobs"])
    for name, part in parts.items():
        own = {n.partition(".")[2]: a for n, a in state.items() if n.partition(".")[0] == name}
        set_state(part, own)
    arrays = {n.partition(".")[2]: a for n, a in state.items() if n.startswith("arrays.")}
    return Predictor(
        config["task"], config["arm"], dict(config["facts"]), dict(config["knobs"]), parts, arrays
    )
