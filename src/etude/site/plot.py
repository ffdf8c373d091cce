"""Where the marks of a measurement's plot stand; the drawing itself is a template."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["plot_of"]

LEFT, RIGHT = 24.0, 316.0  # of the 340 units that the drawing is wide
LABELS = {"better", "worse", "tie", "undecided"}


def plot_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Positions and words for one measurement; None where a mean is not a finite number.

    The interval is that of the difference, drawn from the baseline's mean.
    """
    ours, base = _finite(row.get("ours_mean")), _finite(row.get("baseline_mean"))
    if ours is None or base is None:
        return None
    low, high = _finite(row.get("low")), _finite(row.get("high"))
    ends = [] if low is None or high is None else [base + low, base + high]
    marks = [ours, base, *ends]
    middle, reach = (min(marks) + max(marks)) / 2, (max(marks) - min(marks)) / 2
    reach = reach or abs(middle) or 1.0

    def place(value: float) -> float:
        share = (value - middle) / reach
        return round((LEFT + RIGHT) / 2 + share * (RIGHT - LEFT) / 2, 1)

    label, name = str(row.get("label", "")), str(row["baseline_name"])
    words = f"{name} {base:.4g}"
    between = f" [{_signed(low)}, {_signed(high)}]" if low is not None and high is not None else ""
    seeds = row.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else seeds
    over = f", {count} seeds" if isinstance(count, int) else ""
    return {
        "label": label if label in LABELS else "undecided",
        "ours": place(ours), "base": place(base),
        "low": place(ends[0]) if ends else None, "high": place(ends[1]) if ends else None,
        "ours_text": f"{ours:.4g}", "base_text": f"{base:.4g}", "base_name": name,
        **_anchored("ours", place(ours), f"this method {ours:.4g}"),
        **_anchored("base", place(base), words),
        "said": f"{ours:.4g} against {words}; difference {_signed(ours - base)}{between}{over}",
    }  # fmt: skip


def _anchored(name: str, x: float, text: str) -> dict[str, Any]:
    """Where a text of the drawing stands so that it stays inside: about 6.5 units a letter."""
    half = 3.3 * len(text)
    if x - half < 4:
        return {f"{name}_at": 4, f"{name}_anchor": "start"}
    if x + half > 336:
        return {f"{name}_at": 336, f"{name}_anchor": "end"}
    return {f"{name}_at": x, f"{name}_anchor": "middle"}


def _finite(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if known else None


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")
