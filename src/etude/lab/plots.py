"""The two plots of a report as inline SVG: differences with intervals, quality against cost.

Drawn by matplotlib's Figure interface (no window, no global state but the SVG settings), then
made fit for a page: each color becomes a CSS variable, so that one drawing serves the light
and the dark theme; ids get a prefix, so that two drawings can stand in one document; text
stays text, in the page's own font.
"""

from __future__ import annotations

import math
import re
from html import escape
from io import StringIO
from threading import Lock
from typing import TYPE_CHECKING

from etude.lab.board import Board, Entry
from etude.lab.table import SYMBOLS, Scale, name_of, scale_of, seconds, status_of, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cost_svg", "difference_svg"]

WIDTH = 6.2  # inches; 446 units of the drawing, so 12-unit text is readable on a phone
FONT = 12.0
SHORTEST_FIT = 1e-6  # seconds; a logarithm needs something above zero
# Colors that nothing else draws with, and the variable of the page that takes their place.
INK, SOFT, BAND = "#010101", "#010102", "#010103"
STATUS = {"better": "#010104", "worse": "#010105", "tie": "#010106", "undecided": "#010107",
          "baseline": INK, "failed": "#010105"}  # fmt: skip
VARIABLES = {INK: "ink", SOFT: "soft", BAND: "band"} | {
    color: name for name, color in STATUS.items() if name in ("better", "worse", "tie", "undecided")
}
MARKERS = {"better": "o", "worse": "X", "tie": "s", "undecided": "D", "baseline": "*"}
_LOCK = Lock()  # the SVG settings of matplotlib are global


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """The drawing as an element of a page, described by `label`."""
    import matplotlib

    text = StringIO()
    silent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _LOCK, matplotlib.rc_context():
        matplotlib.rcParams["svg.fonttype"] = "none"
        matplotlib.rcParams["svg.hashsalt"] = prefix
        matplotlib.rcParams["text.parse_math"] = False
        figure.savefig(text, format="svg", transparent=True, metadata=silent)
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<style.*?</style>", "", drawing, flags=re.S)
    for color, name in VARIABLES.items():
        drawing = drawing.replace(color, f"var(--{name})")
    drawing = re.sub(r'\bid="', f'id="{prefix}-', drawing)
    drawing = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", drawing)
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None
    head = f'<svg {box[0]} role="img" aria-label="{escape(label)}" xmlns:xlink='
    return re.sub(r"^<svg .*?>", head + '"http://www.w3.org/1999/xlink">', drawing, flags=re.S)


def _axes(height: float, left: float, right: float, bottom: float = 0.62) -> tuple[Figure, Axes]:
    """A figure of `height` inches with one plot; left, right and bottom are inches too."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasSVG(figure)
    box = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (bottom + 0.32) / height)
    axes = figure.add_axes(box)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(SOFT)
    axes.tick_params(which="both", colors=INK, labelsize=FONT - 1, color=SOFT)
    axes.grid(True, axis="x", color=SOFT, alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def difference_svg(board: Board, prefix: str = "differences") -> str:
    """Every method's difference and interval, and the region that counts as equal; "" if none.

    An infinite interval (one seed) is a dotted line across the plot.
    """
    entries = [entry for entry in board.entries if entry.verdict is not None]
    if not entries:
        return ""
    scale = scale_of(board)
    names = [wrapped(name_of(entry.method), 16) for entry in entries]
    longest = max(len(line) for name in names for line in name.split("\n"))
    figure, axes = _axes(1.25 + 0.46 * len(entries), 0.25 + 0.09 * longest, 1.05)
    margin = board.margin / scale.factor
    axes.axvspan(-margin, margin, color=BAND, alpha=0.35, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    for y, entry in enumerate(entries):
        verdict, status = entry.verdict, status_of(entry, board)
        assert verdict is not None
        color, at = STATUS[status], verdict.difference / scale.factor
        ends = [verdict.low / scale.factor, verdict.high / scale.factor]
        if all(map(math.isfinite, ends)):
            axes.plot(ends, [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            axes.plot(ends, [y, y], "|", color=color, markersize=9, markeredgewidth=2)
        else:
            axes.axhline(y, color=color, linewidth=1.5, linestyle=":")
        axes.plot([at], [y], MARKERS.get(status, "o"), color=color, markersize=8)
        axes.text(1.03, y, f"{SYMBOLS.get(status, '')} {status}", color=color, fontsize=FONT - 1,
                  va="center", transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_yticks(range(len(entries)), names)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    low, high = axes.get_xlim()
    reach = 0.04 * (high - low)
    axes.set_xlim(min(low, -1.3 * margin) - reach, max(high, 1.3 * margin) + reach)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(_axis_name(board, scale, "difference in "), color=INK, fontsize=FONT)
    axes.set_title("the band: equal in practice", loc="left", color=INK, fontsize=FONT - 1)
    said = "; ".join(f"{name_of(e.method)} {_spoken(e, scale)}" for e in entries)
    return _svg(figure, prefix, f"Differences to {name_of(board.baseline)} in {board.metric}, "
                f"with intervals: {said}.")  # fmt: skip


def _axis_name(board: Board, scale: Scale, what: str = "") -> str:
    unit = f", {scale.unit}" if scale.unit else ""
    better = "higher is better →" if board.better == "higher" else "← lower is better"
    return f"{what}{board.metric}{unit} ({better})" if what else f"{board.metric}{unit}"


def _spoken(entry: Entry, scale: Scale) -> str:
    assert entry.verdict is not None
    return f"{scale.difference(entry.verdict.difference)} ({scale.interval(entry.verdict)})"


def cost_svg(board: Board, prefix: str = "cost") -> str:
    """Every arm's mean value against its fit time on a logarithmic axis; "" if there is none."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    entries = [entry for entry in board.entries if entry.value is not None]
    if not entries:
        return ""
    scale = scale_of(board)
    figure, axes = _axes(3.9, 0.85, 0.4)
    xs = [max(entry.fit_s, SHORTEST_FIT) for entry in entries]
    ys = [(entry.value or 0.0) / scale.factor for entry in entries]
    axes.set_xscale("log")
    axes.grid(True, axis="y", color=SOFT, alpha=0.25, linewidth=0.7)
    for x, y, entry in zip(xs, ys, entries, strict=True):
        status = status_of(entry, board)
        if status == "baseline":
            axes.axhline(y, color=INK, linewidth=1, linestyle="--")
        axes.plot([x], [y], MARKERS.get(status, "o"), color=STATUS[status],
                  zorder=4 if status == "baseline" else 3,
                  markersize=11 if status == "baseline" else 8)  # fmt: skip
    axes.set_xlim(min(xs) / 2, max(xs) * 2)
    spread = (max(ys) - min(ys)) or abs(ys[0]) * 0.01 or 1.0
    axes.set_ylim(min(ys) - 0.25 * spread, max(ys) + 0.25 * spread)
    wide = max(xs) / min(xs) > 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 3.0), numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: seconds(x).replace(".0 ", " ")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.locator_params(axis="y", nbins=6)
    axes.set_xlabel("time to fit, logarithmic (← less is cheaper)", color=INK, fontsize=FONT)
    arrow = "↑ higher is better" if board.better == "higher" else "↓ lower is better"
    axes.set_title(f"{_axis_name(board, scale)} ({arrow})", loc="left", color=INK, fontsize=FONT)
    _label(axes, xs, ys, [name_of(entry.method) for entry in entries])
    said = "; ".join(
        f"{name_of(e.method)} {scale.value(e.value)} in {seconds(e.fit_s)}" for e in entries
    )
    return _svg(figure, prefix, f"{board.metric} against time to fit: {said}.")


def _label(axes: Axes, xs: list[float], ys: list[float], names: list[str]) -> None:
    """Write each name beside its point, where no point and no earlier name is."""
    points = axes.transData.transform(list(zip(xs, ys, strict=True))) * 72 / axes.figure.dpi
    frame = axes.bbox.bounds
    left, bottom, width, height = (side * 72 / axes.figure.dpi for side in frame)
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    for i in sorted(range(len(names)), key=lambda i: -points[i][1]):
        x, y = points[i]
        length = 6.4 * len(names[i])
        places = [
            (x + 10 if right else x - 10 - length, y + up)
            for up in (0, -14, 14, -28, 28, -42, 42, -56, 56)
            for right in (True, False)
        ]
        boxes = [(px, py - 7, px + length, py + 7) for px, py in places]
        fits = [
            box for box in boxes
            if left <= box[0] and box[2] <= left + width
            and bottom <= box[1] and box[3] <= bottom + height
            and not any(_overlap(box, other) for other in taken)
        ]  # fmt: skip
        box = fits[0] if fits else boxes[0]
        taken.append(box)
        at = (box[0] - x, (box[1] + box[3]) / 2 - y)
        side = "left" if at[0] > 0 else "right"
        shift = at[0] if side == "left" else at[0] + length
        axes.annotate(
            names[i], (xs[i], ys[i]), (shift, at[1]), textcoords="offset points", ha=side,
            va="center", color=INK, fontsize=FONT - 1,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.8} if at[1] else None,
        )  # fmt: skip


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart
