"""``etude papers``: import, list, search and export papers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from etude.cli.listing import answer, print_json, progress

if TYPE_CHECKING:
    from etude.papers.entry import Entry
    from etude.papers.finder import Finder
    from etude.papers.store import Outcome, Store

__all__ = ["command"]

LISTED = 20  # refusals that are printed
F = TypeVar("F", bound=Callable[..., Any])


def _options(function: F) -> F:
    function = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
    return click.option(
        "--database", metavar="URL", help="File or postgresql:// URL of the papers."
    )(function)


def _many(function: F) -> F:
    return click.option(
        "-k", "count", default=20, show_default=True, type=click.IntRange(1, 1_000),
        help="How many papers to show.",
    )(function)  # fmt: skip


@click.group("papers")
def command() -> None:
    """Import papers from feeds, arXiv and files; list, search and export them.

    \b
    Example:
      etude papers import 2026-11-22
      etude papers search "smaller embeddings"
    """


@command.command("import")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@_options
def import_(sources: tuple[str, ...], database: str | None, as_json: bool) -> None:
    """Import papers; copies are merged by arXiv id, else by title.

    \b
    SOURCE is one of
      2026-11-22, 2026-W47, 2026-11   Hugging Face's daily papers
      arxiv:QUERY, 2405.19504         arXiv's API, its own query syntax
      FILE.json, FILE.jsonl           arXiv's metadata snapshot, or an export
      FILE.txt                        a saved text page of a papers feed
      FILE.bib, FILE.ris              references

    What was interrupted goes on when the command is repeated.

    Exit status 1 where a source could not be read or gave nothing but refusals.
    """
    from etude.papers.importers import import_from

    with _store(database) as store:
        with progress() as bar:
            done = import_from(
                store, sources,
                tell=lambda source, at, total, so_far: bar(f"{source}: {so_far}", at, total),
            )  # fmt: skip
            n_indexed = _finder(store).sync(lambda at, total: bar("search index", at, total))
        n_papers = store.count()
    if as_json:
        facts = {
            "added": done.added, "merged": done.merged, "refused": done.n_refused,
            "indexed": n_indexed, "papers": n_papers,
            "refusals": [{"place": place, "reason": reason} for place, reason in done.refused],
            "failed": [{"source": source, "reason": reason} for source, reason in done.failed],
        }  # fmt: skip
        print_json(facts)
    else:
        _report(done, n_papers)
    if done.failed or (done.refused and not done.added + done.merged):
        click.get_current_context().exit(1)


def _report(done: Outcome, n_papers: int) -> None:
    from etude.papers.entry import line

    click.echo(f"{done}; {n_papers:,} papers in all")
    for place, reason in done.refused[:LISTED]:
        click.echo(line(f"refused: {place}: {reason}", 400))
    if done.n_refused > LISTED:
        click.echo(f"and {done.n_refused - LISTED:,} more: --json lists up to 1,000")
    for source, reason in done.failed:
        click.echo(line(f"failed: {source}: {reason}", 400), err=True)


@command.command("ls")
@click.option("--date", "date", metavar="YYYY-MM-DD", help="Papers of one day.")
@click.option("--week", "week", metavar="YYYY-Www", help="Papers of one week.")
@click.option("--month", "month", metavar="YYYY-MM", help="Papers of one month.")
@click.option("--sort", type=click.Choice(["new", "trending"]), default="new", show_default=True)
@_many
@_options
def ls(
    date: str | None, week: str | None, month: str | None, sort: str, count: int,
    database: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List papers, the newest or the most voted for their age first.

    Exit status 1 where there is none.
    """
    from datetime import UTC, datetime

    from etude.core import EtudeError
    from etude.papers.period import days_of
    from etude.papers.trending import score, trending

    given = {"date": (date, 10), "week": (week, 8), "month": (month, 7)}
    chosen = [(name, text, size) for name, (text, size) in given.items() if text is not None]
    if len(chosen) > 1:
        raise EtudeError("--date, --week and --month exclude each other: give one")
    with _store(database) as store:
        if chosen:
            name, text, size = chosen[0]
            if len(text) != size or ("W" in text) != (name == "week"):
                raise EtudeError(f"--{name} must be such as {_example(name)}, got {text[:40]!r}")
            now = datetime.now(UTC)
            found = store.of(*days_of(text), limit=5_000)
            found.sort(key=lambda entry: entry.date, reverse=True)
            if sort == "trending":
                found.sort(key=lambda entry: score(entry.votes, entry.date, now), reverse=True)
            found = found[:count]
        else:
            found = store.newest(count) if sort == "new" else trending(store, k=count)
    answer(found, {}, as_json)


def _example(name: str) -> str:
    return {"date": "2026-11-22", "week": "2026-W47", "month": "2026-11"}[name]


@command.command("search")
@click.argument("query", nargs=-1, required=True)
@_many
@_options
def search(query: tuple[str, ...], count: int, database: str | None, as_json: bool) -> None:
    """Search the papers by words and by meaning.

    \b
    Example:
      etude papers search "long context attention -vision"
      etude papers search 'ti:"optimal transport" cat:cs.LG'

    Exit status 1 where nothing was found.
    """
    text = " ".join(query)
    with _store(database) as store:
        found = _finder(store).search(text, count)
    if found.note and not as_json:
        click.echo(found.note, err=True)
    answer(found.entries, {"query": text, "note": found.note}, as_json, found.scores)


@command.command("similar")
@click.argument("name", metavar="ID")
@click.option("-k", "count", default=5, show_default=True, type=click.IntRange(1, 1_000),
              help="How many papers to show.")  # fmt: skip
@_options
def similar(name: str, count: int, database: str | None, as_json: bool) -> None:
    """Show the papers nearest in meaning to the one with this id.

    Exit status 1 where there is none.
    """
    with _store(database) as store:
        entry = _known(store, name)
        found = _finder(store).similar(entry.id, count)
    answer(found, {"id": entry.id, "title": entry.title}, as_json)


@command.command("export")
@click.argument("names", nargs=-1, metavar="[ID]...")
@click.option("--format", "form", required=True,
              type=click.Choice(["bibtex", "ris", "csl-json", "jsonl"]))  # fmt: skip
@click.option("--to", "path", metavar="FILE", help="Write a file, which must not be there.")
@_options
def export(
    names: tuple[str, ...], form: str, path: str | None, database: str | None, as_json: bool
) -> None:
    """Write all papers, or those with these ids, as a file of references.

    \b
    Example:
      etude papers export --format bibtex --to papers.bib
      etude papers export --format ris 2405.19504
    """
    from etude.core import EtudeError
    from etude.papers.exporting import export as pieces_of

    if as_json and path is None:
        raise EtudeError("--json needs --to FILE: the papers themselves go to the output")
    with _store(database) as store:
        entries = iter([_known(store, name) for name in names]) if names else store.everything()
        if path is None:
            for piece in pieces_of(entries, form):
                click.echo(piece, nl=False)
            return
        number = 0

        def counted() -> Iterator[Entry]:
            nonlocal number
            for number, entry in enumerate(entries, 1):  # noqa: B007
                yield entry

        try:
            with Path(path).open("x", encoding="utf-8", newline="") as file:
                file.writelines(pieces_of(counted(), form))
        except OSError as error:
            raise EtudeError(f"{path} cannot be written: {error.strerror}") from None
    if as_json:
        print_json({"file": path, "papers": number})
    else:
        click.echo(f"{path}: {number:,} papers")


@contextmanager
def _store(database: str | None) -> Iterator[Store]:
    from etude.papers.store import Store

    store = Store(database)
    try:
        yield store
    finally:
        store.close()


def _finder(store: Store) -> Finder:
    """The search of this database, on the index that the site uses as well."""
    from etude.papers.finder import Finder
    from etude.papers.place import index_folder

    return Finder(store, index_folder(store))


def _known(store: Store, name: str) -> Entry:
    from etude.core import EtudeError

    entry = store.get(name)
    if entry is None:
        raise EtudeError(f"no paper has the id {name[:80]!r}; etude papers search finds ids")
    return entry
