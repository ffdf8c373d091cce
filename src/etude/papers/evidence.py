"""What was measured here: the evidence that ``make evidence`` writes and the package carries.

One file a method, ``<family>.<slug>.jsonl``, one JSON object a line and measurement: method,
metric, better, data, setting, baseline_name, ours_mean, baseline_mean, difference, low, high,
label, verdict, seeds, headline, version, machine, at, seconds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from etude.core import EtudeError
from etude.papers.catalogue import paper_of

__all__ = ["VERDICTS", "evidence", "folder", "headline"]

VERDICTS = ("holds", "does not hold at this scale", "undecided")
NEEDED = ("metric", "data", "baseline_name", "ours_mean", "baseline_mean", "verdict", "headline")


def folder() -> Path | None:
    """Where the evidence is: in the package, else beside ``src`` of a checkout, else None."""
    package = Path(__file__).resolve().parent.parent
    places = [package / "evidence"]
    if package.parent.name == "src":
        places.append(package.parent.parent / "evidence")
    return next((place for place in places if place.is_dir()), None)


def evidence(name: str) -> list[dict[str, Any]]:
    """All measurements of a method, headlines first; [] if there are none.

    Raises:
        EtudeError: an unknown name, or a damaged line (file and line are named).
    """
    paper = paper_of(name)
    place = folder()
    path = place / f"{paper.key}.jsonl" if place else None
    if path is None or not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            absent = [field for field in NEEDED if field not in row]
        except (ValueError, TypeError):
            row, absent = None, []
        if not isinstance(row, dict) or absent or row["verdict"] not in VERDICTS:
            what = f"lacks {', '.join(absent)}" if absent else "is not a measurement"
            raise EtudeError(f"{path.name}, line {number} {what}: run etude verify {paper.slug}")
        rows.append(row)
    return sorted(rows, key=lambda row: not row["headline"])


def headline(name: str) -> dict[str, Any] | None:
    """The newest measurement of the method's claim, or None."""
    rows = [row for row in evidence(name) if row["headline"]]
    return max(rows, key=lambda row: str(row.get("at", "")), default=None)
