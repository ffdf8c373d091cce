"""``etude compare``: a fair trial of several methods at once."""

from __future__ import annotations

import click

from etude.cli.trials import options


@click.command("compare")
@click.argument("source", metavar="DATA")
@click.option("--methods", metavar="A,B,C", help="Slugs; default: all that can meet the data.")
@click.option(
    "--recall",
    type=float,
    metavar="SHARE",
    help="Search: each index at its cheapest setting that finds so much (0.95).",
)
@options
def command(
    source: str, methods: str | None, recall: float | None, task: str | None,
    target: str | None, against: str | None,
    seeds: int, tune: int, budget: str | None, metric: str | None, margin: float | None,
    kinds: tuple[str, ...], missing: str, settings: tuple[str, ...], labels_metric: str | None,
    descriptions: str | None, jobs: int, on: str, ledger: str | None, folder: str, fresh: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Try several methods against one baseline on DATA, a built-in name or a file.

    \b
    Example:
      etude compare digits
      etude compare flowers.csv --target species --seeds 10 --jobs 2
      etude compare digits --task train --setting noise=0.4
      etude compare vectors.npy --task search --recall 0.95
      etude compare pairs.npz --task match

    Exit status 1 where every method failed.
    """
    from etude.cli import trials
    from etude.lab import compare

    if recall is not None:
        task, settings = trials.at_recall(recall, task, settings)
    names = None if methods is None else [n.strip() for n in methods.split(",") if n.strip()]
    with trials.bar(quiet=as_json) as progress:
        board = compare(
            source, methods=names, task=task, target=target, against=against, seeds=seeds,
            tune=tune, budget_s=trials.seconds(budget), metric=metric, margin=margin,
            kinds=trials.kinds(kinds), missing=missing, settings=settings,
            labels_metric=labels_metric, descriptions=descriptions, jobs=jobs, on=on,
            ledger=ledger, fresh=fresh, progress=progress,
        )  # fmt: skip
    trials.show(board, folder, ledger, as_json=as_json)
    if all(entry.value is None for entry in board.entries if entry.arm == "ours"):
        click.get_current_context().exit(1)
