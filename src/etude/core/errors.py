"""The one error of etude, and the two forms its message takes."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["EtudeError", "refuse", "require"]

LONGEST = 80  # characters of a value that a message quotes


class EtudeError(ValueError):
    """Bad input, said in one line: the name, the rule, the value, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def quote(value: object) -> str:
    """The value as a message shows it: its repr, shortened; arrays by shape and dtype."""
    shape = None if isinstance(value, type) else getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape != ():
        return f"shape {tuple(shape)} of {getattr(value, 'dtype', '?')}"
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def refuse(name: str, rule: str, value: object) -> NoReturn:
    """Raise ``EtudeError`` with the message ``<name> must be <rule>, got <value>``."""
    raise EtudeError(f"{name} must be {rule}, got {quote(value)}")


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Refuse `value` unless `condition` holds: ``require(k > 0, "k", "positive", k)``."""
    if not condition:
        refuse(name, rule, value)
