"""``etude try``: a fair trial of one method."""

from __future__ import annotations

import click

from etude.cli.trials import options


@click.command("try")
@click.argument("method")
@click.option("--data", "source", required=True, metavar="FILE-OR-NAME", help="What to try it on.")
@options
def command(
    method: str, source: str, task: str | None, target: str | None, against: str | None,
    seeds: int, tune: int, budget: str | None, metric: str | None, margin: float | None,
    kinds: tuple[str, ...], missing: str, settings: tuple[str, ...], labels_metric: str | None,
    descriptions: str | None, jobs: int, on: str, ledger: str | None, folder: str, fresh: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Try METHOD (a slug or arXiv id) against a strong simple baseline on your data.

    \b
    Example:
      etude try naive_bayes_probe --data digits
      etude try 2304.07288 --data flowers.csv --target species

    Exit status 1 where the method is worse than the baseline or failed.
    """
    from etude.cli import trials
    from etude.lab import try_method

    with trials.bar(quiet=as_json) as progress:
        board = try_method(
            method, source, task=task, target=target, against=against, seeds=seeds, tune=tune,
            budget_s=trials.seconds(budget), metric=metric, margin=margin,
            kinds=trials.kinds(kinds), missing=missing, settings=settings,
            labels_metric=labels_metric, descriptions=descriptions, jobs=jobs, on=on,
            ledger=ledger, fresh=fresh, progress=progress,
        )  # fmt: skip
    trials.show(board, folder, ledger, as_json=as_json)
    ours = next(entry for entry in board.entries if entry.arm == "ours")
    failed = bool(ours.failures) or ours.verdict is None
    if failed or (ours.verdict and ours.verdict.label == "worse"):
        click.get_current_context().exit(1)
