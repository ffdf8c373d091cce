"""Wiring by names: a method asks by its parameter names, the task hands over what it has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from etude.core import EtudeError

__all__ = ["arguments", "asks", "missing"]


def asks(method: Callable[..., Any]) -> dict[str, bool]:
    """Parameter names of a class's constructor or of a call; True where it has no default."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default is p.empty for p in parameters if p.name != "self"}


def missing(method: Callable[..., Any], have: Mapping[str, Any]) -> list[str]:
    """The required names that `have` lacks."""
    return [name for name, required in asks(method).items() if required and name not in have]


def arguments(
    method: Callable[..., Any], facts: Mapping[str, Any], knobs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The arguments for `method`: what it asks for of `facts`, then `knobs` over them.

    Raises:
        EtudeError: it asks for a name that is not there, or a knob is not a parameter of it.
    """
    names, knobs = asks(method), knobs or {}
    who = getattr(method, "__qualname__", str(method))
    for knob in knobs:
        if knob not in names:
            raise EtudeError(f"{who} has no parameter {knob!r}; it has {', '.join(names)}")
    found = {name: facts[name] for name in names if name in facts} | dict(knobs)
    absent = [name for name, required in names.items() if required and name not in found]
    if absent:
        raise EtudeError(f"{who} asks for {', '.join(absent)}; this task has {', '.join(facts)}")
    return found
