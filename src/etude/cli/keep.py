"""``etude keep``: the winner of a run as a folder."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("keep")
@click.argument("run")
@click.option("--to", "folder", required=True, metavar="DIR", help="A new or empty folder.")
@click.option("--method", metavar="M", help="Keep this method of the run instead of its winner.")
@click.option("--ledger", metavar="URL", help="File or postgresql:// URL of the ledger.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(run: str, folder: str, method: str | None, ledger: str | None, as_json: bool) -> None:
    """Write the winner of RUN, fitted on all its rows, as a folder with its evidence.

    RUN is an id, the beginning of one, or "latest".

    \b
    Example:
      etude keep latest --to my-model
      etude keep 3f2a9c --to my-model --method naive_bayes_probe
    """
    import json
    import shlex

    from etude.lab.run import keep

    kept = keep(run, folder, method=method, ledger=ledger)
    if as_json:
        click.echo(json.dumps(kept, ensure_ascii=False))
        return
    click.echo(f"kept {kept['method']} in {kept['folder']}")
    click.echo(f"serve it: etude serve {shlex.quote(folder)}")
