"""The command line: one file a verb, imported only when its verb is used."""

from __future__ import annotations

import importlib
import sys

import click

from etude import __version__

__all__ = ["cli", "main"]

# verb -> (module of etude.cli, its line in --help); so that --help imports no verb.
VERBS = {
    "find": ("find", "Rank the papers of the catalogue for a need in plain words."),
    "info": ("info", "What is known of one paper, and what it measured here."),
    "try": ("try_", "A fair trial of one method on your data."),
    "compare": ("compare", "A fair trial of several methods at once."),
    "keep": ("keep", "Write the winner of a run as a folder."),
    "serve": ("serve", "Serve a kept folder over HTTP."),
    "report": ("report", "Show one run's report again."),
    "papers": ("papers", "Import, list, search and export papers."),
    "runs": ("runs", "List the runs of the ledger."),
    "data": ("data", "What data is there, and what etude sees in it."),
    "verify": ("verify", "Measure the claim that a method's card declares."),
    "site": ("site", "Serve the papers as a site: feed, search, trials, mail."),
    "digest": ("digest", "Mail the papers of the day to those who subscribed."),
}


class Verbs(click.Group):
    """A group that imports a verb's module on first use, and shows errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs in the order of their use."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"etude.cli.{VERBS[cmd_name][0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their lines, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Bad input is one line on stderr and exit status 2, never a traceback."""
        from etude.core.errors import EtudeError

        try:
            return super().invoke(ctx)
        except EtudeError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="etude")
def cli() -> None:
    """Daily Papers that you can run: find a paper, try it on your data, keep the winner.

    \b
    Example:
      etude find "smaller embeddings without losing recall"
      etude compare digits
      etude keep latest --to my-model && etude serve my-model

    Exit status: 0 = yes, 1 = the answer is no, 2 = bad input.
    """


def main() -> None:
    """The program ``etude``; interrupted, it says how to go on and exits with 130."""
    try:
        status = cli.main(standalone_mode=False, prog_name="etude")
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        click.echo("interrupted; the same command goes on where it was", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
