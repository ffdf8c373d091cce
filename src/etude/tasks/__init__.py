"""Tasks: what a kind of method is asked to do, and how that is measured; one file a task."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from etude.core import Card, EtudeError, card_of, cards, load, set_state
from etude.tasks.base import Arm, Predictor, Task

__all__ = ["TASKS", "arm_of", "arms", "get_task", "restore"]

TASKS = {"probe": "Probe", "train": "Train", "search": "Search", "detect": "Detect"}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        EtudeError: unknown; names the tasks there are.
    """
    if name not in TASKS:
        raise EtudeError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    task: Task = getattr(importlib.import_module(f"etude.tasks.{name}"), TASKS[name])()
    return task


def arm_of(task: Task, name: str) -> Arm:
    """A baseline of the task or a method by slug, key or arXiv id, as one side of a trial.

    Raises:
        EtudeError: unknown, or a method that answers another task.
    """
    if name in task.baselines:
        return task.baselines[name]
    card = card_of(name)
    if card.task != task.name:
        raise EtudeError(
            f"{card.key} answers the task {card.task!r}, not {task.name!r}; "
            f"see etude info {card.slug}"
        )
    return _arm(card, task)


def arms(task: Task) -> list[Arm]:
    """Every method that answers the task."""
    return [_arm(card, task) for card in cards().values() if card.task == task.name]


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
