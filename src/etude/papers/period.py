"""Days, weeks and months by their names."""

from __future__ import annotations

import re
from datetime import date, timedelta

from etude.core import refuse

__all__ = ["days_of"]

FORM = re.compile(r"(\d{4})-(?:W(\d\d)|(\d\d)(?:-(\d\d))?)", re.ASCII)


def days_of(period: str) -> tuple[str, str]:
    """The first and the last day of "2026-11-22", "2026-W47" or "2026-11".

    Raises:
        EtudeError: none of these, or not in the calendar.
    """
    found = FORM.fullmatch(period)
    try:
        if found and found[2]:
            first = date.fromisocalendar(int(found[1]), int(found[2]), 1)
            last = first + timedelta(days=6)
        elif found and found[4]:
            first = last = date.fromisoformat(period)
        elif found:
            first = date.fromisoformat(f"{period}-01")
            last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
        else:
            raise ValueError
    except (ValueError, OverflowError):
        rule = "a day (2026-11-22), week (2026-W47) or month (2026-11) of the calendar"
        refuse("period", rule, period)
    return first.isoformat(), last.isoformat()
