"""``etude serve``: a kept folder over HTTP."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("serve")
@click.argument("folder", metavar="DIR")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535),
              help="Port; 0 takes a free one.")  # fmt: skip
def command(folder: str, host: str, port: int) -> None:
    """Serve what etude keep wrote: GET /health, POST /invocations.

    Only this machine can reach it unless --host says otherwise. Ctrl-C ends it.

    \b
    Example:
      etude serve my-model
      curl localhost:8000/invocations -d '{"inputs": [[5.1, 3.5, 1.4, 0.2]]}'
    """
    from etude.lab.serve import serve

    serve(folder, host=host, port=port, say=click.echo, warn=_warn)


def _warn(line: str) -> None:
    click.echo(line, err=True)
