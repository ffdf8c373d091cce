"""``etude report``: the leaderboard and the page of an earlier run."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("report")
@click.argument("run")
@click.option("--to", "folder", default="etude-report", show_default=True, metavar="DIR",
              help="Folder for report.html and report.json.")  # fmt: skip
@click.option("--ledger", metavar="URL", help="File or postgresql:// URL of the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
def command(run: str, folder: str, ledger: str | None, as_json: bool, show: bool) -> None:
    """Show the report of RUN again: its id, the beginning of it, or "latest".

    Nothing is measured; the page is made from the rows of the ledger.

    \b
    Example:
      etude report latest
      etude report 3f2a9c --to here --open
    """
    from etude.cli import trials
    from etude.lab.run import board_of

    trials.show(board_of(run, ledger), folder, ledger, as_json=as_json)
    if show:
        from pathlib import Path

        click.launch(str(Path(folder) / "report.html"))
