"""``etude digest``: the mails to those who subscribed at the site."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.group(name="digest")
def command() -> None:
    """Send the papers of the day and the week to those who subscribed.

    \b
    Example:
      etude digest send --dry-run mails
      etude digest send --base-url https://papers.example.org
    """


@command.command()
@click.option("--dry-run", "folder", metavar="DIR", help="Write .eml files there; send nothing.")
@click.option(
    "--frequency", type=click.Choice(["daily", "weekly"]), help="Only these [default: both]."
)  # fmt: skip
@click.option("--database", metavar="URL", help="File or postgresql:// URL of the papers.")
@click.option(
    "--base-url", metavar="URL", envvar="ETUDE_BASE_URL", default="http://127.0.0.1:8000",
    show_default=True, help="How the outside reaches the site; ETUDE_BASE_URL.",
)  # fmt: skip
@click.option(
    "--folder", "own", metavar="DIR", help="The folder of the site's secret (~/.etude/site)."
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def send(
    folder: str | None, frequency: str | None, database: str | None, base_url: str,
    own: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Send what is due; for cron, as often as you like: nobody gets a paper twice.

    The mail server comes from ETUDE_SMTP (smtp://[USER:PASSWORD@]HOST:PORT, or smtps://), the
    sender's address from ETUDE_MAIL_FROM.

    \b
    Example:
      17 6 * * *  etude digest send

    Exit status 1 where the server broke off; what was not sent is sent by the next call.
    """
    import json
    from dataclasses import asdict, replace
    from pathlib import Path

    from etude.cli import trials
    from etude.core import require
    from etude.site import sending
    from etude.site.settings import Settings
    from etude.site.state import open_site

    known = base_url.startswith(("http://", "https://"))
    require(known, "--base-url", "an http or https address", base_url)
    settings = Settings(database=database, base_url=base_url.rstrip("/"))
    if own is not None:
        settings = replace(settings, folder=Path(own).expanduser())
    site = open_site(settings)
    if folder is not None:
        count = sending.dry_run(site, Path(folder).expanduser(), frequency)
        said = f"{count} mails written to {folder}, none sent"
        click.echo(json.dumps({"written": count, "folder": folder}) if as_json else said)
        return
    with trials.bar(quiet=as_json) as bar:
        report = sending.send(site, frequency, tell=lambda n, total: bar(n, total, "readers"))
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        click.echo(_said(report.sent, report.later, report.refused, report.stopped))
        if report.confirmations:
            click.echo(f"{report.confirmations} confirmations sent")
    if report.problem:
        click.echo(f"error: {report.problem}; the next call sends the rest", err=True)
        click.get_current_context().exit(1)


def _said(sent: int, later: int, refused: int, stopped: int) -> str:
    parts = [f"{sent} mails sent"]
    parts += [f"{later} put off"] if later else []
    parts += [f"{refused} refused"] if refused else []
    parts += [f"{stopped} addresses stopped"] if stopped else []
    return ", ".join(parts)
