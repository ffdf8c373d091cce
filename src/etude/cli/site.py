"""``etude site``: the papers as a site."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]


@click.command("site")
@click.option("--database", metavar="URL", help="File or postgresql:// URL of the papers.")
@click.option("--ledger", metavar="URL", help="File or postgresql:// URL of the ledger.")
@click.option("--index", default="", metavar="URL",
              help="milvus://HOST:PORT that searches among the papers' vectors.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535),
              help="Port; 0 takes a free one.")  # fmt: skip
@click.option("--base-url", metavar="URL",
              help="How readers reach it, for mails and feeds; else where it listens.")  # fmt: skip
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Where secret, uploads and reports are kept (~/.etude/site).")  # fmt: skip
@click.option("--allow-trials", is_flag=True,
              help="Let readers start trials; beyond loopback ETUDE_TOKEN is needed.")  # fmt: skip
@click.option("--refresh", type=click.FloatRange(0.05, 168), metavar="HOURS",
              help="Import the day's Hugging Face papers now and every HOURS hours.")  # fmt: skip
@click.option("--proxies", default=0, type=click.IntRange(0, 10), show_default=True,
              help="Proxies in front that are trusted to tell a reader's address.")  # fmt: skip
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
def command(
    database: str | None, ledger: str | None, index: str, host: str, port: int,
    base_url: str | None, folder: Path | None, allow_trials: bool, refresh: float | None,
    proxies: int, no_open: bool,
) -> None:  # fmt: skip
    """Serve the papers as a site: by day, search, methods, trials, feeds, mail.

    Only this machine can reach it unless --host says otherwise. Ctrl-C ends it.

    \b
    Example:
      etude site
      etude site --database postgresql://etude@db/papers --refresh 6

    The environment tells secrets: ETUDE_TOKEN, ETUDE_SECRET, and ETUDE_SMTP with
    ETUDE_MAIL_FROM for mails.
    """
    import os
    from urllib.parse import urlsplit

    # A query is one short text: a second thread costs more than it gains, and other readers wait.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from etude.core import require
    from etude.site.index import in_step
    from etude.site.running import Background, check_reach, listen, serve
    from etude.site.scheduler import mailing
    from etude.site.settings import Settings

    if base_url is not None:
        parts = urlsplit(base_url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
        require(known, "--base-url", "an address such as https://papers.example.org", base_url)
    probe = Settings(allow_trials=allow_trials)
    check_reach(probe, host, lambda line: click.echo(line, err=True))
    place = listen(host, port)
    settings = Settings(
        database=database, ledger=ledger, base_url=(base_url or place.address).rstrip("/"),
        folder=(folder or probe.folder).expanduser(), allow_trials=allow_trials, proxies=proxies,
        index=index,
    )  # fmt: skip
    background: list[Background] = [in_step, mailing]
    if refresh is not None:
        from etude.site.refresh import refreshing

        background.append(refreshing(refresh))

    def started() -> None:
        click.echo(f"etude at {place.address} (Ctrl-C ends it)")
        if not no_open:
            import webbrowser
            from threading import Thread

            Thread(target=webbrowser.open, args=(place.address,), daemon=True).start()

    serve(settings, place, background, started)
