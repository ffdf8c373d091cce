"""Trying: data, splits, budget, runs, statistics, ledger, report, artifact, serve.

``judge`` turns paired values into a verdict; ``try_method``, ``compare`` and ``keep`` do what the
commands of the same names do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etude.lab.verdict import Verdict, judge

if TYPE_CHECKING:
    from etude.lab.run import compare, keep, try_method

__all__ = ["Verdict", "compare", "judge", "keep", "try_method"]


def __getattr__(name: str) -> Any:
    # Running needs torch; judging does not, so the two are imported on first use only.
    if name in ("compare", "keep", "try_method"):
        from etude.lab import run

        return getattr(run, name)
    raise AttributeError(f"module 'etude.lab' has no attribute {name!r}")
