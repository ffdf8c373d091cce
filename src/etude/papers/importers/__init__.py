"""Importers, one file a source; ``import_from`` knows a source by its name."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from etude.core import EtudeError
from etude.papers import imports
from etude.papers.entry import Entry, arxiv_id
from etude.papers.importers import arxiv, bibtex, huggingface, page, ris, snapshot
from etude.papers.importers.common import Item, Mark, Refusal, SourceError, open_file, shown
from etude.papers.importers.upstream import Upstream, open_client
from etude.papers.period import days_of
from etude.papers.store import CHUNK, Outcome, Store

if TYPE_CHECKING:
    import httpx2

__all__ = ["Mark", "Refusal", "SourceError", "Tell", "import_from"]

Tell = Callable[[str, int, int, Outcome], None]
FILES = {".json": snapshot, ".jsonl": snapshot, ".txt": page, ".bib": bibtex, ".ris": ris}
RULE = (
    "a day (2026-11-22), week (2026-W47) or month (2026-11), arxiv:QUERY, an arXiv id, "
    "or a .json, .jsonl, .txt, .bib or .ris file"
)


@dataclass(frozen=True)
class _Job:
    """One source: its name in the record, what tells its versions apart, how it is read."""

    name: str
    stamp: str
    read: Callable[[Callable[[bool], Upstream], int], Iterator[Item]]


def import_from(
    store: Store,
    sources: Sequence[str],
    *,
    tell: Tell | None = None,
    client: httpx2.Client | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Store the papers of the sources, one after the other.

    Args:
        store: where the papers and the record of the import go.
        sources: days, weeks, months, arXiv queries or ids, files (see RULE).
        tell: called with (source, position, total, outcome so far) as it goes on; total is 0
            where it is unknown.
        client: asks upstream; by default one is made.
        sleep: how to wait, given seconds.

    Returns:
        What was added, merged and refused. A source that could not be read stands in `failed`
        with the reason; what was stored before stays.

    Raises:
        EtudeError: a source that is none of these, or a file that cannot be opened; then
            nothing was imported. Or the database failed.
    """
    jobs = _jobs(sources)
    total = Outcome()
    with ExitStack() as stack:
        asked: list[httpx2.Client] = [client] if client else []

        def upstream(is_arxiv: bool) -> Upstream:
            if not asked:
                asked.append(stack.enter_context(open_client()))
            turn = (lambda: _take_turn(store, sleep)) if is_arxiv else None
            return Upstream(asked[0], sleep=sleep, turn=turn)

        for job in jobs:
            total += _run(store, job, upstream, tell)
    return total


def _take_turn(store: Store, sleep: Callable[[float], None]) -> None:
    """Wait until 3 s after arXiv's last turn, whichever process of this database had it."""
    now = time.time_ns() // 1_000_000
    wait = store.turn("arxiv", now, arxiv.GAP_MS) - now
    if wait > 0:
        sleep(wait / 1_000)


def _jobs(sources: Sequence[str]) -> list[_Job]:
    jobs, ids = [], []
    for source in sources:
        text = source.strip()
        names = [arxiv_id(name) for name in text.removeprefix("arxiv:").split(",")]
        if all(names):
            ids += names
        elif text.lower().startswith("arxiv:") and text[6:].strip():
            jobs.append(_query(text[6:].strip()))
        elif re.fullmatch(r"\d{4}-(?:W\d\d|\d\d(?:-\d\d)?)", text, re.ASCII):
            jobs.append(_period(text))
        else:
            jobs.append(_file(source))
    if ids:
        name = f"arxiv:{','.join(ids)}"[:200]
        jobs.append(_Job(name, "ids", lambda up, _: arxiv.read_ids(ids, up(True))))
    return jobs


def _query(query: str) -> _Job:
    if len(query) > 1_000 or not query.isprintable():
        raise EtudeError("an arXiv query must be at most 1,000 printable characters")
    return _Job(f"arxiv:{query}", "query", lambda up, start: arxiv.read(query, up(True), start))


def _period(text: str) -> _Job:
    days_of(text)  # refuses what the calendar does not have
    return _Job(f"hf:{text}", "", lambda up, _: huggingface.read(text, up(False)))


def _file(source: str) -> _Job:
    path = Path(source).expanduser()
    reader = FILES.get(path.suffix.lower())
    if reader is None:
        given = source if len(source) <= 80 else source[:79] + "…"
        raise EtudeError(f"{given!r} is no source of papers; a source is {RULE}")
    with open_file(path) as file:
        size = file.seek(0, 2)
    stat = path.stat()
    stamp = f"{path.resolve()} {size} {stat.st_mtime_ns}"
    if reader is snapshot:
        return _Job(f"file:{shown(path)}", stamp, lambda _, start: snapshot.read(path, start))
    return _Job(f"file:{shown(path)}", stamp, lambda _, start: reader.read(path))


def _run(
    store: Store, job: _Job, upstream: Callable[[bool], Upstream], tell: Tell | None
) -> Outcome:
    number, position = imports.begin(store.database, job.name, job.stamp)
    total, end = Outcome(), 0
    batch: list[Entry] = []

    def flush() -> None:
        nonlocal total, batch
        total += store.add(batch, running=number, position=position)
        batch = []
        if tell:
            tell(job.name, position, end, total)

    try:
        for item in job.read(upstream, position):
            if isinstance(item, Refusal):
                total += Outcome(refused=((f"{job.name}, {item.place}", item.reason),))
            elif isinstance(item, Mark):
                position, end = item.position, item.total
                flush()
            else:
                batch.append(item)
                if len(batch) == 2 * CHUNK:  # marks, where there are any, come sooner
                    flush()
        flush()
    except EtudeError as error:
        # What came before the failure is stored where a mark said that it is whole.
        imports.finish(store.database, number, str(error), ok=False)
        if not isinstance(error, SourceError):
            raise
        return replace(total, failed=((job.name, str(error)),))
    imports.finish(store.database, number, str(total), ok=True)
    return total
