"""What ``etude try`` and ``etude compare`` share: options, the bar, and the answer's shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from etude.lab.board import Board

__all__ = ["at_recall", "bar", "options", "seconds", "show"]


def seconds(text: str | None) -> float | None:
    """``60``, ``60s``, ``2m`` or ``1h`` in seconds."""
    from etude.core import refuse

    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    if found is None:
        refuse("--budget", "a time such as 60s, 2m or 1h", text)
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def kinds(pairs: tuple[str, ...]) -> dict[str, str]:
    """``COLUMN=KIND`` pairs as a mapping."""
    from etude.core import refuse

    found = {}
    for pair in pairs:
        column, equals, kind = pair.rpartition("=")
        if not equals or not column:
            refuse("--as", "COLUMN=KIND, such as zip=category", pair)
        found[column] = kind
    return found


def at_recall(
    recall: float, task: str | None, settings: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """``--recall 0.95`` of a search, as the setting of the task that compares indexes."""
    from etude.core import refuse

    if task not in (None, "search", "encode"):
        refuse("--recall", "given with --task search or encode", f"--task {task}")
    return "encode", (*settings, f"recall={recall:g}")


OPTIONS = [
    click.option("--task", help="The task; by default the method's own, else probe."),
    click.option("--target", metavar="COLUMN", help="Column to predict; default: the last."),
    click.option("--against", metavar="BASELINE", help="What to compare with."),
    click.option("--seeds", default=5, show_default=True, help="Paired seeds."),
    click.option("--tune", default=3, show_default=True, help="Configurations per arm."),
    click.option("--budget", metavar="TIME", help="Wall time of each fit (60s, 2m)."),
    click.option("--metric", help="What decides; default: the task's headline."),
    click.option("--margin", type=float, help="Region of practical equivalence."),
    click.option("--as", "kinds", multiple=True, metavar="COLUMN=KIND", help="Override a kind."),
    click.option(
        "--missing", default="error", show_default=True,
        type=click.Choice(["error", "drop", "median"]), help="What happens to empty cells.",
    ),
    click.option("--setting", "settings", multiple=True, metavar="NAME",
                 help="Change the training part: noise=0.4, imbalance=20, unseen (train); "
                 "shots=5, unseen, noise=0.4, imbalance=20, transductive, zero_shot (probe); "
                 "recall=0.95 or bytes=48 (encode)."),
    click.option("--labels-metric", metavar="FILE",
                 help="Distances between classes: a CSV matrix, or a JSON tree."),
    click.option("--descriptions", metavar="FILE", help="JSON: class to a list of phrases."),
    click.option("--jobs", default=1, show_default=True, help="Processes."),
    click.option("--on", default="local", show_default=True, help="local, ray or ray://HOST:PORT."),
    click.option("--ledger", metavar="URL", help="File or postgresql:// URL of the ledger."),
    click.option("--report", "folder", default="etude-report", show_default=True,
                 help="Folder of the report."),
    click.option("--fresh", is_flag=True, help="Measure again what an equal run has measured."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
]  # fmt: skip


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a trial."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@contextmanager
def bar(*, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr; where `quiet`, nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if quiet:
        yield lambda *_: None
        return
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"), BarColumn(24), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    progress = Progress(*columns, console=Console(stderr=True))
    line = progress.add_task("", total=1)
    started = False

    def tell(done: int, total: int, label: str) -> None:
        nonlocal started
        if not started:  # not before the first step: a refusal stays one line
            progress.start()
            started = True
        progress.update(line, completed=done, total=total, description=label)

    try:
        yield tell
    finally:
        if started:
            progress.stop()


def show(board: Board, folder: str, ledger: str | None, *, as_json: bool) -> None:
    """The leaderboard or its JSON twin, the report, and the two commands that go on."""
    import json

    from rich.console import Console

    from etude.lab.ledger import Ledger
    from etude.lab.report import write_report
    from etude.lab.table import board_json, leaderboard
    from etude.lab.trade import trade

    path = write_report(board, Ledger(ledger).rows(board.run.id), folder)
    if as_json:
        click.echo(json.dumps({**board_json(board), "report": str(path)}, indent=2))
        return
    console = Console(width=80) if not Console().is_terminal else Console()
    console.print(leaderboard(board))
    if board.task == "encode":
        console.print()
        console.print(trade(board))
    click.echo(f"report  {path}")
    click.echo(f"keep    etude keep {board.run.id} --to winner")
    click.echo("serve   etude serve winner")
