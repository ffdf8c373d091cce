"""``etude runs``: what the ledger holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from etude.lab.row import Run

__all__ = ["command"]

WIDTH = 80


@click.command("runs")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100_000),
              help="How many runs to list, the last one first.")  # fmt: skip
@click.option("--export", "path", metavar="FILE",
              help="Write all rows to a .csv, .parquet or .jsonl file instead.")  # fmt: skip
@click.option("--ledger", metavar="URL", help="File or postgresql:// URL of the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(limit: int, path: str | None, ledger: str | None, as_json: bool) -> None:
    """List the runs of the ledger, or export all that was measured.

    \b
    Example:
      etude runs
      etude runs --export rows.parquet

    Exit status 1 where there is no run.
    """
    import json
    from dataclasses import asdict

    from etude.lab.ledger import Ledger

    book = Ledger(ledger)
    if path is not None:
        n_rows = book.export(path)
        answer = {"file": path, "rows": n_rows}
        click.echo(json.dumps(answer) if as_json else f"{path}: {n_rows:,} rows")
        return
    runs, counts = book.runs(limit), book.counts()
    if as_json:
        found = [{**asdict(run), "rows": counts.get(run.id, 0)} for run in runs]
        click.echo(json.dumps({"ledger": book.name, "runs": found}, ensure_ascii=False))
    elif runs:
        _show(runs, counts)
    else:
        click.echo(f"{book.name} has no run yet: start one with etude try or etude compare")
    if not runs:
        click.get_current_context().exit(1)


def _show(runs: list[Run], counts: dict[str, int]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, expand=True)
    for name in ("run", "when (UTC)", "what", "state", "rows"):
        wide = name == "what"
        table.add_column(
            name, justify="right" if name == "rows" else "left", no_wrap=True,
            overflow="ellipsis", ratio=1 if wide else None, min_width=8 if wide else None,
        )  # fmt: skip
    for run in runs:
        # What a file or a command line holds is no markup, and no control character.
        what = run.command.removeprefix("etude ")
        cells = (run.id, run.started[:16].replace("T", " "), what, run.state)
        plain = ("".join(c if c.isprintable() else "?" for c in cell) for cell in cells)
        table.add_row(*map(Text, plain), f"{counts.get(run.id, 0):,}")
    console = Console(highlight=False)
    console.print(table, width=min(console.width, WIDTH))
