"""The thread of a serving process that runs waiting trials, one at a time for the whole site."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from etude.core import EtudeError
from etude.site import process, uploads
from etude.site.jobs import LEASE_S, Job, Jobs
from etude.site.settings import Settings

__all__ = ["Worker", "check", "command_of", "is_gone", "uploads_of"]

POLL_S = 1.0
BEAT_S = 1.0
SWEEP_S = 3600.0
CHECK_S = 30.0
log = logging.getLogger("etude.site")


def uploads_of(settings: Settings) -> Path:
    """Where readers' files are kept."""
    return settings.folder.expanduser().absolute() / "uploads"


def command_of(job: Job) -> str:
    """The command line that measures the same, with the reader's own name of the file."""
    words = ["etude", "try", job.method.rpartition(".")[2], "--data", job.data]
    words += ["--target", job.target] if job.target else []
    words += ["--missing", job.missing] if job.missing != "error" else []
    return shlex.join([*words, "--seeds", str(job.seeds)])


def check(settings: Settings, job: Job) -> dict[str, Any]:
    """Rows, features and target of a job's file, looked at in a bounded process.

    Raises:
        EtudeError: what is wrong with it.
    """
    limits = process.Limits(CHECK_S, settings.trial_memory, nice=0)  # a reader waits for it
    folder = uploads_of(settings) / job.folder
    return process.run({"do": "check"} | _words(job, settings), folder, limits)


def _words(job: Job, settings: Settings) -> dict[str, Any]:
    """What the child must know of the job; the only secret is the ledger's own address."""
    return {
        "method": job.method, "source": job.file or job.data, "shown": job.data,
        "file": job.file, "target": job.target, "missing": job.missing, "seeds": job.seeds,
        "ledger": _ledger(settings), "command": command_of(job),
    }  # fmt: skip


def _ledger(settings: Settings) -> str:
    """The ledger's address from any working folder."""
    known = settings.ledger or os.environ.get("ETUDE_LEDGER") or "~/.etude/ledger.sqlite"
    scheme, mark, rest = known.partition("://")
    if mark and scheme != "sqlite":
        return known
    return str(Path(rest[1:] if mark else known).expanduser().absolute())


def is_gone(owner: str) -> bool:
    """Whether the owner was a process of this machine that has ended."""
    host, _, rest = owner.partition("|")
    pid = rest.partition("|")[0]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        return owner not in ALIVE  # the number of one that has ended is ours now
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


ALIVE: set[str] = set()  # owners that are threads of this process


class Worker:
    """Runs jobs in a thread from ``start`` to ``stop``.

    Args:
        settings: where files are kept, the ledger, and the limits.
        jobs: the table.
    """

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self.settings, self.jobs = settings, jobs
        self.owner = f"{socket.gethostname()}|{os.getpid()}|{secrets.token_hex(8)}"
        self._down, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="etude-trials", daemon=True)
        self._swept = -SWEEP_S

    def start(self) -> None:
        """Begin."""
        ALIVE.add(self.owner)
        self._thread.start()

    def stop(self) -> None:
        """End; what runs is killed and waits again, for the ledger holds what was measured."""
        self._down.set()
        self._wake.set()
        self._thread.join(15)
        ALIVE.discard(self.owner)

    def wake(self) -> None:
        """Look for jobs now."""
        self._wake.set()

    def _loop(self) -> None:
        while not self._down.is_set():
            try:
                busy = self.step()
            except EtudeError as error:  # the database is away: it may come back
                log.warning("trials wait: %s", error)
                busy = False
            except Exception:
                log.exception("trials wait")
                busy = False
            if not busy:
                self._wake.wait(POLL_S)
                self._wake.clear()

    def step(self) -> bool:
        """Recover what others left, then run one job; False where none could be run."""
        root = uploads_of(self.settings)
        if time.monotonic() - self._swept >= SWEEP_S:
            self._swept = time.monotonic()
            uploads.sweep(root)
        if self.jobs.idle():
            return False
        for ended in self.jobs.recover(is_gone):
            uploads.forget(root, ended.folder)
        job = self.jobs.claim(self.owner)
        if job is None:
            return False
        self._run(job)
        return True

    def _run(self, job: Job) -> None:
        root, beats = uploads_of(self.settings), Beats(self.jobs, job, self.owner, self._down)
        state, facts = "failed", {}
        try:
            facts = self._measure(job, root, beats)
            state = "finished"
        except process.StoppedError:
            if beats.lost:
                return
            if self._down.is_set():
                self.jobs.release(job.id, self.owner)
                return
            state, facts = "stopped", {"message": "stopped by its reader"}
        except EtudeError as error:
            facts = {"message": str(error)}
        except Exception as error:
            log.exception("trial %s", job.id)
            facts = {"message": f"the site could not run the trial ({type(error).__name__})"}
        self.jobs.finish(job.id, self.owner, state, **facts)
        uploads.forget(root, job.folder)

    def _measure(self, job: Job, root: Path, beats: Beats) -> dict[str, Any]:
        limits = process.Limits(self.settings.trial_s, self.settings.trial_memory)
        words = {"do": "measure"} | _words(job, self.settings)
        with tempfile.TemporaryDirectory() as spare:
            folder = root / job.folder if job.folder else Path(spare)
            if job.folder and not (folder / job.file).is_file():
                raise EtudeError(f"{job.data} is no longer kept here: send it again")
            try:
                return process.run(words, folder, limits, tell=beats.tell, go_on=beats.go_on)
            finally:
                beats.flush()


class Beats:
    """The lease and the progress of one running job, written at most once a second."""

    def __init__(self, jobs: Jobs, job: Job, owner: str, down: threading.Event) -> None:
        self.jobs, self.job, self.owner, self.down = jobs, job, owner, down
        self.lost = False
        self._news: tuple[int, int, str] | None = None
        self._last = self._good = time.monotonic()

    def tell(self, done: int, total: int, label: str) -> None:
        """Keep the progress for the next beat."""
        self._news = (done, total, label)

    def flush(self) -> None:
        """Write what was told last: a short trial is over before the first beat."""
        if self._news and not self.lost:
            with suppress(EtudeError):
                self.jobs.beat(self.job.id, self.owner, self._news)

    def go_on(self) -> bool:
        """Beat if it is time; False where the job must stop."""
        if self.down.is_set():
            return False
        now = time.monotonic()
        if now - self._last < BEAT_S:
            return True
        self._last = now
        try:
            wanted = self.jobs.beat(self.job.id, self.owner, self._news)
        except EtudeError as error:
            log.warning("trial %s: %s", self.job.id, error)
            wanted = True if now - self._good < LEASE_S else None
        else:
            self._good = now
        self.lost = wanted is None
        return bool(wanted)
