"""What users ask of a comparison of indexes: which one, how large, how fast, at which recall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etude.lab.board import Board, Entry
from etude.lab.table import name_of, seconds, size

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["answer", "figures", "trade"]

NAMES = ("recall_at_10", "bytes", "queries_per_s", "seconds")


def figures(entry: Entry, board: Board) -> dict[str, float] | None:
    """Recall, bytes a vector, queries a second and seconds of a build; None for a failure."""
    if entry.value is None:
        return None
    found = {**entry.other_metrics, board.metric: entry.value}
    return {name: found[name] for name in NAMES}


def setting(entry: Entry) -> str:
    """The setting that most seeds chose."""
    return " ".join(f"{k}={v}" for k, v in entry.params.items() if k != "rung")


def answer(board: Board) -> str:
    """One sentence: the fastest and the smallest of those that did not fail."""
    known = {e.title: f for e in board.entries if (f := figures(e, board)) is not None}
    if not known:
        return "Nothing reaches what was asked for."
    fast = max(known, key=lambda name: known[name]["queries_per_s"])
    small = min(known, key=lambda name: (known[name]["bytes"], -known[name]["queries_per_s"]))

    def said(name: str) -> str:
        one = known[name]
        return (
            f"{name}, {one['queries_per_s']:,.0f} queries a second at {size(one['bytes'])} a "
            f"vector and recall {one['recall_at_10']:.3f}"
        )

    if fast == small:
        return f"Fastest and smallest: {said(fast)}."
    return f"Fastest: {said(fast)}. Smallest: {said(small)}."


def trade(board: Board) -> Table:
    """The trade of each index as a table of at most 80 columns, in the board's order."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left",
                  caption=answer(board), caption_style="none")  # fmt: skip
    table.add_column("index or code", max_width=28, overflow="fold")
    table.add_column("setting", max_width=20, overflow="fold")
    for head in ("recall\n@10", "bytes a\nvector", "queries\na second", "build"):
        table.add_column(head, justify="right", no_wrap=True)
    for entry in board.entries:
        found = figures(entry, board)
        if found is None:
            table.add_row(name_of(entry.method), "! failed", "–", "–", "–", "–")
            continue
        table.add_row(
            entry.title, setting(entry), f"{found['recall_at_10']:.3f}", size(found["bytes"]),
            f"{found['queries_per_s']:,.0f}", seconds(found["seconds"]),
        )  # fmt: skip
    return table
