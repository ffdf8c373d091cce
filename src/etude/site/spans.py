"""Days, weeks and months as addresses name them: their limits, and what lies beside them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, timedelta

__all__ = ["Span", "day_span", "month_span", "week_of", "week_span"]


@dataclass(frozen=True)
class Span:
    """First and last day ("YYYY-MM-DD"), the name for people, the spans before and after.

    `before` and `after` are "" where the calendar ends.
    """

    name: str
    title: str
    first: str
    last: str
    before: str
    after: str


def day_span(text: str) -> Span | None:
    """The day "2026-11-22", or None where there is none of that name."""
    day = _date(text)
    if day is None:
        return None
    title = f"{day:%A}, {day.day} {day:%B} {day.year}"
    beside = [_moved(day, n) for n in (-1, 1)]
    return Span(text, title, text, text, *(d.isoformat() if d else "" for d in beside))


def week_span(text: str) -> Span | None:
    """The ISO week "2026-W47", Monday to Sunday, or None."""
    match = re.fullmatch(r"(\d{4})-W(\d{2})", text, re.ASCII)
    try:
        first = date.fromisocalendar(int(match[1]), int(match[2]), 1) if match else None
    except ValueError:
        return None
    last = _moved(first, 6) if first else None
    if first is None or last is None:
        return None
    title = f"Week {first.isocalendar().week}, {_between(first, last)}"
    beside = [_moved(first, n) for n in (-7, 7)]
    names = [_week(d) if d and _moved(d, 6) else "" for d in beside]
    return Span(text, title, first.isoformat(), last.isoformat(), *names)


def month_span(text: str) -> Span | None:
    """The month "2026-11", or None."""
    first = _date(f"{text}-01") if re.fullmatch(r"\d{4}-\d{2}", text, re.ASCII) else None
    if first is None:
        return None
    behind = _moved(first, -1)
    beyond = _moved(first, 31)
    last = _moved(beyond.replace(day=1), -1) if beyond else date.max
    assert last is not None
    beside = [d.isoformat()[:7] if d else "" for d in (behind, beyond)]
    return Span(text, f"{first:%B} {first.year}", first.isoformat(), last.isoformat(), *beside)


def week_of(day: str) -> str:
    """The ISO week that a day lies in."""
    return _week(date.fromisoformat(day))


def _week(day: date) -> str:
    year, week, _ = day.isocalendar()
    return f"{year:04d}-W{week:02d}"


def _date(text: str) -> date | None:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _moved(day: date, n: int) -> date | None:
    try:
        return day + timedelta(days=n)
    except OverflowError:
        return None


def _between(first: date, last: date) -> str:
    if first.month == last.month:
        return f"{first.day} to {last.day} {last:%B} {last.year}"
    start = f"{first.day} {first:%B}" + (f" {first.year}" if first.year != last.year else "")
    return f"{start} to {last.day} {last:%B} {last.year}"
