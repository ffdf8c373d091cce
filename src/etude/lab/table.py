"""The leaderboard as a table of 80 columns, as JSON, and as one sentence.

Numbers are scaled once a board, so that a column reads down: shares with four decimals, times
and sizes in the unit that suits the largest. What is not known stays visible: an interval of
one seed is infinite, a failed method has a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from etude.lab.board import Board, Entry
from etude.lab.verdict import Verdict

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ARROWS", "SYMBOLS", "Scale", "board_json", "headline", "interval_level", "leaderboard",
    "name_of", "notes", "plain", "printable", "scale_of", "seconds", "size", "status_of", "wrapped",
]  # fmt: skip

WIDTH = 80
SYMBOLS = {"better": "✓", "worse": "✗", "tie": "=", "undecided": "?", "failed": "!"}
STYLES = {"better": "green", "worse": "red", "tie": "blue", "undecided": "yellow", "failed": "red"}
ARROWS = {"higher": "↑", "lower": "↓"}
PREFIXES = {
    "s": ((1e-6, "µs"), (1e-3, "ms"), (1.0, "s")),
    "bytes": ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")),
}
BOUNDED = ("share", "correlation")  # their four decimals mean the same on every board


def seconds(value: float) -> str:
    """A time for people: ``850 ms``, ``1.2 s``, ``3.4 min``."""
    for unit, below, factor in (("µs", 1e-3, 1e6), ("ms", 1.0, 1e3), ("s", 60.0, 1.0)):
        if value < below:
            return _short(value * factor, unit)
    return _short(value / 60, "min") if value < 3600 else _short(value / 3600, "h")


def size(n_bytes: float) -> str:
    """A size for people, in powers of 1000: ``850 B``, ``3.4 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 999.5:
            return _short(n_bytes, unit)
        n_bytes /= 1000
    return _short(n_bytes, "TB")


def _short(value: float, unit: str) -> str:
    whole = unit == "B" or value >= 9.95 or value == 0
    return f"{value:,.0f} {unit}" if whole else f"{value:.1f} {unit}"


@dataclass(frozen=True)
class Scale:
    """How the numbers of one board are written: divided by `factor`, in `unit`.

    `decimals` is for values, `step` for differences (None: in powers of ten).
    """

    factor: float
    unit: str
    decimals: int
    step: int | None

    def value(self, x: float | None) -> str:
        """A value of the metric; a dash where there is none."""
        return "–" if x is None else f"{x / self.factor:.{self.decimals}f}"

    def difference(self, x: float) -> str:
        """A difference with its sign; zero has none."""
        if not math.isfinite(x):
            return "+∞" if x > 0 else "-∞"
        x /= self.factor
        text = f"{x:+.1e}" if self.step is None else f"{x:+.{self.step}f}"
        return text if float(text) else text[1:]

    def interval(self, verdict: Verdict) -> str:
        """Both ends of the interval."""
        return f"{self.difference(verdict.low)} to {self.difference(verdict.high)}"


def _decimals(largest: float) -> int:
    """Decimals with which `largest` shows four significant digits, from 0 to 4."""
    return min(4, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 4


def scale_of(board: Board) -> Scale:
    """The scale of a board's values and differences."""
    if board.unit in BOUNDED:
        return Scale(1.0, "", 4, 4)
    values = [abs(e.value) for e in board.entries if e.value is not None]
    ends = [abs(x) for v in _verdicts(board) for x in (v.difference, v.low, v.high)]
    largest = max((x for x in values if math.isfinite(x)), default=0.0)
    usual = ((1.0, board.unit), (1e3, "k"), (1e6, "M"), (1e9, "G"))
    choice = PREFIXES.get(board.unit, usual)
    factor, unit = next((p for p in reversed(choice) if largest >= p[0]), choice[0])
    widest = max((x for x in ends if math.isfinite(x)), default=0.0) / factor
    step = None if 0 < widest < 1e-3 or widest >= 1e6 else _decimals(widest)
    return Scale(factor, unit, _decimals(largest / factor), step)


def _verdicts(board: Board) -> Iterator[Verdict]:
    return (entry.verdict for entry in board.entries if entry.verdict is not None)


def name_of(method: str) -> str:
    """The slug of a key; a baseline's name as it is."""
    return printable(method.rpartition(".")[2])


def printable(text: str, longest: int = 200) -> str:
    """`text` on one line without control characters: names come from files."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def status_of(entry: Entry, board: Board) -> str:
    """A verdict's label, "baseline" or "failed"; with fewer pairs than two "undecided"."""
    if entry.value is None:
        return "failed"
    if entry.method == board.baseline:
        return "baseline"
    return "undecided" if entry.verdict is None else entry.verdict.label


def interval_level(board: Board) -> str:
    """The intervals' confidence ("95 %"); "" where Holm gave them different ones."""
    levels = {verdict.level for verdict in _verdicts(board)}
    return f"{100 * (1 - levels.pop()):.3g} %" if len(levels) == 1 else ""


def plain(value: Any) -> Any:
    """`value` as strict JSON values: infinities and NaN become null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def board_json(board: Board) -> dict[str, Any]:
    """The leaderboard as JSON values; every entry says its `status`."""
    facts: dict[str, Any] = plain(board)
    for entry, line in zip(board.entries, facts["entries"], strict=True):
        line["status"] = status_of(entry, board)
    return {"headline": headline(board)} | facts


def headline(board: Board) -> str:
    """The verdict in words, one or two sentences."""
    base, data = name_of(board.baseline), printable(board.data)
    tried = [entry for entry in board.entries if entry.method != board.baseline]
    counts = dict.fromkeys(("better", "tie", "worse", "undecided", "failed"), 0)
    for entry in tried:
        counts[status_of(entry, board)] += 1
    tally = ", ".join(f"{n} {label}" for label, n in counts.items() if n)
    best = next((e for e in tried if e.method == board.winner), None)
    if best is None and len(tried) != 1:
        return f"No method was better than {base} on {data}: {tally or 'none was tried'}."
    entry = best or tried[0]
    tail = f" Of {len(tried)} methods: {tally}." if len(tried) > 1 else ""
    return f"{_said(entry, board, base, data)}{tail}"


def _said(entry: Entry, board: Board, base: str, data: str) -> str:
    name, verdict, scale = name_of(entry.method), entry.verdict, scale_of(board)
    status = status_of(entry, board)
    if status == "failed":
        return f"{name} failed on every seed; {base} stays."
    if verdict is None:
        return f"{name} against {base} on {data} is undecided: not every seed has a value."
    unit = f" {scale.unit}" if scale.unit else ""
    facts = (
        f"{board.metric} {scale.difference(verdict.difference)}{unit} "
        f"({100 * (1 - verdict.level):.3g} % interval {scale.interval(verdict)}, "
        f"{verdict.n_seeds} paired {'seed' if verdict.n_seeds == 1 else 'seeds'})"
    )
    said = {
        "better": f"{name} is better than {base} on {data}",
        "worse": f"{name} is worse than {base} on {data}",
        "tie": f"{name} and {base} are equal in practice on {data}",
        "undecided": f"{name} against {base} on {data} is undecided",
    }[status]
    return f"{said}: {facts}." + (f" {_seeds(verdict)}" if status == "undecided" else "")


def _seeds(verdict: Verdict) -> str:
    if verdict.seeds_needed is None:
        return "No affordable number of seeds would decide it."
    more = max(1, verdict.seeds_needed - verdict.n_seeds)
    return f"About {more:,} more {'seed' if more == 1 else 'seeds'} would decide it."


def notes(board: Board) -> list[str]:
    """What stands below the table: how to read it, and what it leaves out."""
    scale, base = scale_of(board), name_of(board.baseline)
    unit = f" {scale.unit}" if scale.unit else ""
    margin = f"{board.margin / scale.factor:.4g}{unit}"
    said = [
        f"Differences are method - {base}, paired over {len(board.seeds)} seed(s); "
        f"within ±{margin} counts as equal."
    ]
    if not interval_level(board) and any(True for _ in _verdicts(board)):
        least, most = min(v.level for v in _verdicts(board)), max(v.level for v in _verdicts(board))
        said.append(
            f"Intervals of {100 * (1 - most):.3g} % to {100 * (1 - least):.3g} %: Holm's "
            "correction for several methods."
        )
    for entry in board.entries:
        name, first = name_of(entry.method), entry.default_value
        if first is not None and entry.value is not None and first != entry.value:
            verdict = entry.default_verdict
            also = f", by default {SYMBOLS[verdict.label]} {verdict.label}" if verdict else ""
            said.append(f"{name}: {scale.value(first)} by default, {scale.value(entry.value)} "
                        f"tuned{also}.")  # fmt: skip
        if entry.failures:
            first_reason = printable(entry.failures[0], 120)
            said.append(f"{name}: {len(entry.failures)} failure(s), the first: {first_reason}")
        if status_of(entry, board) == "undecided" and entry.verdict is not None:
            said.append(f"{name}: {_seeds(entry.verdict)}")
    said += board.run.spec.get("notes", ())
    said += [f"{name_of(n)} not tried: {printable(why, 120)}" for n, why in board.skipped.items()]
    return said


def wrapped(name: str, width: int) -> str:
    """The name on lines of at most `width`, broken after underscores where it can be."""
    lines = [""]
    for piece in name.replace("_", "_\0").split("\0"):
        if len(lines[-1]) + len(piece) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line[i : i + width] for line in lines for i in range(0, len(line), width))


def leaderboard(board: Board) -> Table:
    """The board as a rich table of at most 80 columns; color only repeats the symbols."""
    from rich.table import Table
    from rich.text import Text

    scale, arrow = scale_of(board), ARROWS[board.better]
    metric = board.metric if len(board.metric) <= 8 else "value"
    unit = f"\n{scale.unit}" if scale.unit else ""
    level = interval_level(board)
    heads = [f"{metric} {arrow}{unit}", "differ-\nence", f"{level} interval".strip(), "verdict",
             "fit", "bytes"]  # fmt: skip
    lines = [_line(entry, board, scale) for entry in board.entries]
    widths = [
        max(len(part) for cell in column for part in cell.split("\n"))
        for column in zip(heads, *lines, strict=True)
    ]
    room = WIDTH - sum(widths) - len(widths)  # one blank between two columns
    if room < 12:
        lines = [[cell.replace(" to ", "\nto ") for cell in line] for line in lines]
        widths[2] = max(len(p) for line in [heads, *lines] for p in line[2].split("\n"))
        room = WIDTH - sum(widths) - len(widths)
    direction = f"{board.metric} {arrow} {board.better} is better"
    data = printable(board.data, WIDTH - len(board.task) - len(direction) - 8)
    table = Table(
        title=Text(f"{board.task} on {data} · {direction}"), title_justify="left", box=None,
        caption=Text("\n".join(f"· {note}" for note in notes(board)), style="not dim"),
        caption_justify="left", padding=(0, 1, 0, 0), pad_edge=False, caption_style="none",
        title_style="bold", width=sum(widths) + len(widths) + max(room, 8),
    )  # fmt: skip
    table.add_column("method", width=max(room, 8), overflow="fold")
    for head, width in zip(heads, widths, strict=True):
        left = head == "verdict"
        table.add_column(head, justify="left" if left else "right", width=width, overflow="fold")
    for entry, line in zip(board.entries, lines, strict=True):
        name = Text(wrapped(name_of(entry.method), max(room, 8)))
        if entry.method == board.winner:
            name.stylize("bold")
        style = STYLES.get(status_of(entry, board), "")
        cells = [Text(cell, style=style if i == 3 else "") for i, cell in enumerate(line)]
        table.add_row(name, *cells)
    return table


def _line(entry: Entry, board: Board, scale: Scale) -> list[str]:
    status, verdict = status_of(entry, board), entry.verdict
    return [
        scale.value(entry.value),
        scale.difference(verdict.difference) if verdict else "",
        scale.interval(verdict) if verdict else "",
        f"{SYMBOLS[status]} {status}" if status in SYMBOLS else status,
        seconds(entry.fit_s) if entry.value is not None else "",
        size(entry.bytes) if entry.value is not None else "",
    ]
