"""The table of trials that readers started: who waits, what runs, how it ended.

One trial runs at a time for the whole site, however many processes serve it: a unique index
allows one row in the state "running", so that a second claim is refused by the database. Who
runs a job renews its lease; a job whose lease has run out was left by a process that is gone:
it waits again once (the ledger holds what was measured, nothing is measured twice), then fails.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa

from etude.core import EtudeError
from etude.lab.database import NUMBER, meta_table
from etude.papers.tables import wanted
from etude.site.beside import Beside

__all__ = ["LEASE_S", "OPEN", "Job", "Jobs", "QueueFullError"]

LEASE_S = 90.0  # longer than a writer of SQLite may wait for another one
MOST_STARTS = 2
OPEN = ("queued", "running")
TABLES = sa.MetaData()
meta_table("trials", TABLES)
JOBS = sa.Table(
    "trials_jobs", TABLES,
    sa.Column("number", NUMBER, primary_key=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    *wanted(sa.String, "state"),
    *wanted(sa.Text, "paper", "method", "data", "folder", "file", "target", "missing"),
    *wanted(sa.BigInteger, "seeds"),
    *wanted(sa.String, "made_by", index=True),
    *wanted(sa.Double, "created"),
    *(sa.Column(n, sa.Double) for n in ("started", "finished")),
    *wanted(sa.BigInteger, "done", "total", "starts", "wish"),
    *wanted(sa.Text, "label", "message", "run", "owner"),
    *wanted(sa.Double, "lease"),
    *(sa.Column(n, sa.Text) for n in ("result", "report")),
)  # fmt: skip
sa.Index(
    "trials_one_runs", JOBS.c.state, unique=True,
    sqlite_where=JOBS.c.state == "running", postgresql_where=JOBS.c.state == "running",
)  # fmt: skip
sa.Index("trials_by_state", JOBS.c.state, JOBS.c.number)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One trial that a reader asked for.

    Attributes:
        id: random; whoever knows it may see the job.
        state: "queued", "running", "finished", "failed" or "stopped".
        paper, method: id of the paper's page, and the method's key.
        data: a built-in name, or the name of the reader's file, cleaned.
        folder, file: where that file is kept (``etude.site.uploads``), "" for built-in data.
        target, missing: how the data is read ("" is the last column).
        made_by: the reader's name in the cookie.
        created, started, finished: seconds since 1970.
        done, total, label: the progress; total is 0 before it is known.
        message: why it failed or was stopped, "" otherwise.
        run: id of the ledger's run, "" before the end.
        starts: how often it was begun; `wish` is 1 where its reader wants it stopped.
    """

    id: str = ""
    state: str = "queued"
    paper: str
    method: str
    data: str
    folder: str = ""
    file: str = ""
    target: str = ""
    missing: str = "error"
    seeds: int
    made_by: str
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    done: int = 0
    total: int = 0
    label: str = ""
    message: str = ""
    run: str = ""
    starts: int = 0
    wish: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it still waits or runs."""
        return self.state in OPEN


class QueueFullError(EtudeError):
    """As many trials wait as the site lets wait: answered with status 503."""


COLUMNS = [JOBS.c[f.name] for f in fields(Job)]
OTHER = JOBS.alias("other")  # the table again, in a condition on one of its rows


class Jobs(Beside):
    """The jobs in the database of the papers."""

    tables, what = TABLES, "the trials"

    def add(self, job: Job, most: int) -> Job:
        """Let the job wait; the same job with its id.

        Raises:
            QueueFullError: `most` jobs wait already.
        """
        facts = {f.name: getattr(job, f.name) for f in fields(Job)}
        facts |= {"id": secrets.token_hex(8), "state": "queued", "created": time.time()}
        facts |= {"owner": "", "lease": 0.0}
        waiting = sa.select(sa.func.count()).where(OTHER.c.state == "queued").scalar_subquery()
        row = sa.select(*(sa.literal(v, JOBS.c[n].type) for n, v in facts.items()))
        with self.database.begin() as connection:
            new = sa.insert(JOBS).from_select(list(facts), row.where(waiting < most))
            if connection.execute(new.returning(JOBS.c.id)).one_or_none() is None:
                raise QueueFullError(
                    f"{most} trials wait already, as many as this site lets wait: try again later"
                )
        return Job(**{f.name: facts[f.name] for f in fields(Job)})

    def get(self, job_id: str) -> Job | None:
        """The job with this id, or None."""
        found = self._read(sa.select(*COLUMNS).where(JOBS.c.id == job_id))
        return found[0] if found else None

    def recent(self, made_by: str, limit: int = 50, *, paper: str = "") -> list[Job]:
        """The newest jobs: those on built-in data, and the reader's own; of one paper if named."""
        known = sa.or_(JOBS.c.folder == "", JOBS.c.made_by == made_by)
        query = sa.select(*COLUMNS).where(known, *([JOBS.c.paper == paper] if paper else []))
        return self._read(query.order_by(JOBS.c.number.desc()).limit(limit))

    def ahead(self, job: Job) -> int:
        """How many jobs come before one that waits, the running one included."""
        mine = sa.select(OTHER.c.number).where(OTHER.c.id == job.id).scalar_subquery()
        before = sa.or_(
            JOBS.c.state == "running", sa.and_(JOBS.c.state == "queued", JOBS.c.number < mine)
        )
        with self.database.begin() as connection:
            query = sa.select(sa.func.count()).where(before, JOBS.c.id != job.id)
            return int(connection.execute(query).scalar_one())

    def result(self, job_id: str) -> dict[str, Any] | None:
        """What was measured, as JSON values, or None."""
        text = self._text(job_id, "result")
        return json.loads(text) if text else None

    def report(self, job_id: str) -> str | None:
        """The report's page, or None."""
        return self._text(job_id, "report")

    def claim(self, owner: str) -> Job | None:
        """Take the job that waits longest, if none runs; it is `owner`'s for ``LEASE_S``."""
        first = (
            sa.select(OTHER.c.id).where(OTHER.c.state == "queued")
            .order_by(OTHER.c.number).limit(1).scalar_subquery()
        )  # fmt: skip
        runs = sa.select(OTHER.c.id).where(OTHER.c.state == "running").exists()
        now = time.time()
        change = (
            sa.update(JOBS).where(JOBS.c.id == first, JOBS.c.state == "queued", ~runs)
            .values(
                state="running", owner=owner, lease=now + LEASE_S, started=now, done=0, total=0,
                label="starting", starts=JOBS.c.starts + 1,
            )
            .returning(*COLUMNS)
        )  # fmt: skip
        try:
            with self.database.begin() as connection:
                row = connection.execute(change).mappings().one_or_none()
        except EtudeError as error:
            if "contradicts" in str(error):  # the unique index: another process was quicker
                return None
            raise
        return None if row is None else Job(**row)

    def beat(
        self, job_id: str, owner: str, progress: tuple[int, int, str] | None = None
    ) -> bool | None:
        """Renew the lease and write the progress: whether to go on, None where it is lost."""
        facts: dict[str, Any] = {"lease": time.time() + LEASE_S}
        if progress is not None:
            facts |= dict(zip(("done", "total", "label"), progress, strict=True))
            facts["label"] = str(facts["label"])[:200]
        change = self._mine(job_id, owner).values(facts).returning(JOBS.c.wish)
        with self.database.begin() as connection:
            wish = connection.execute(change).scalar_one_or_none()
        return None if wish is None else not wish

    def finish(
        self, job_id: str, owner: str, state: str, *, message: str = "", run: str = "",
        result: dict[str, Any] | None = None, report: str | None = None,
    ) -> bool:  # fmt: skip
        """Record how the job ended; False where it was another's meanwhile."""
        text = None if result is None else json.dumps(result)
        facts = {"state": state, "message": message[:1000], "run": run, "finished": time.time()}
        change = self._mine(job_id, owner).values(**facts, result=text, report=report)
        with self.database.begin() as connection:
            return bool(connection.execute(change).rowcount)

    def release(self, job_id: str, owner: str) -> None:
        """Let the job wait again, as if it had not been begun: the site is going down in order."""
        facts = {"state": "queued", "owner": "", "starts": JOBS.c.starts - 1}
        with self.database.begin() as connection:
            connection.execute(self._mine(job_id, owner).values(facts))

    def ask_stop(self, job_id: str, made_by: str) -> bool:
        """Stop the reader's own job: at once where it waits, else its process is told."""
        mine = (JOBS.c.id == job_id, JOBS.c.made_by == made_by)
        ended = {"state": "stopped", "finished": time.time(), "message": "stopped by its reader"}
        waits = sa.update(JOBS).where(*mine, JOBS.c.state == "queued").values(ended)
        runs = sa.update(JOBS).where(*mine, JOBS.c.state == "running").values(wish=1)
        with self.database.begin() as connection:
            return any([connection.execute(waits).rowcount, connection.execute(runs).rowcount])

    def idle(self) -> bool:
        """Whether there is nothing to claim or to recover; it only reads."""
        query = sa.select(sa.func.count()).where(JOBS.c.state.in_(OPEN))
        with self.database.begin() as connection:
            return connection.execute(query).scalar_one() == 0

    def recover(self, gone: Callable[[str], bool] = lambda owner: False) -> list[Job]:
        """Jobs whose process is gone wait again, or fail the second time; returns the ended.

        A process is gone where its lease has run out, or where `gone` says it of the owner.
        """
        query = sa.select(JOBS.c.owner).where(JOBS.c.state == "running")
        with self.database.begin() as connection:
            dead = [str(name) for (name,) in connection.execute(query) if gone(str(name))]
        late = sa.or_(JOBS.c.lease < time.time(), JOBS.c.owner.in_(dead))
        left = sa.and_(JOBS.c.state == "running", late)
        wished = sa.or_(JOBS.c.starts >= MOST_STARTS, JOBS.c.wish == 1)
        said = sa.case(
            (JOBS.c.wish == 1, "stopped by its reader"),
            else_="the site went down twice while this trial ran: start it again",
        )
        state = sa.case((JOBS.c.wish == 1, "stopped"), else_="failed")
        over = sa.update(JOBS).where(left, wished).values(
            state=state, message=said, finished=time.time()
        ).returning(*COLUMNS)  # fmt: skip
        again = sa.update(JOBS).where(left, ~wished).values(
            state="queued", owner="", label="waits again: the site was started anew"
        )  # fmt: skip
        with self.database.begin() as connection:
            ended = [Job(**row) for row in connection.execute(over).mappings()]
            connection.execute(again)
        return ended

    def _mine(self, job_id: str, owner: str) -> sa.Update:
        return sa.update(JOBS).where(
            JOBS.c.id == job_id, JOBS.c.state == "running", JOBS.c.owner == owner
        )

    def _read(self, query: sa.Select[Any]) -> list[Job]:
        with self.database.begin() as connection:
            return [Job(**row) for row in connection.execute(query).mappings()]

    def _text(self, job_id: str, column: str) -> str | None:
        with self.database.begin() as connection:
            query = sa.select(JOBS.c[column]).where(JOBS.c.id == job_id)
            found = connection.execute(query).scalar_one_or_none()
            return None if found is None else str(found)
