"""Who runs the trials: a real trial to its report, limits, stops, and going on after a kill."""

import io
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trying import gone_in, wait_for

from etude.lab.ledger import Ledger
from etude.site import uploads
from etude.site.jobs import Job, Jobs
from etude.site.worker import Worker, uploads_of

JOB = Job(paper="2302.02334", method="heads.naive_bayes_probe", data="iris", seeds=2, made_by="ann")


@pytest.fixture
def local(settings):
    made = Jobs(settings.database)
    yield made
    made.close()


def upload(settings, content: bytes, name: str = "flowers.csv"):
    return uploads.store(uploads_of(settings), io.BytesIO(content), name, 10**7)


def flowers(n: int = 60) -> bytes:
    rng = np.random.default_rng(0)
    rows = (f"{a:.3f},{a + b:.3f},{'uv'[i % 2]}" for i, (a, b) in enumerate(
        zip(rng.normal(size=n) + np.arange(n) % 2, rng.normal(size=n), strict=True)))  # fmt: skip
    return ("length,<b>width</b>,kind\n" + "\n".join(rows) + "\n").encode()


def test_a_real_trial_of_a_file_runs_to_its_report(settings, local) -> None:
    kept = upload(settings, flowers(), "<i>flowers.csv")
    job = local.add(
        replace(JOB, data=kept.shown, folder=kept.folder, file=kept.file, target="kind"), 9
    )
    assert Worker(settings, local).step() is True
    done = local.get(job.id)
    assert (done.state, done.message) == ("finished", "")
    result = local.result(job.id)
    assert [line["status"] for line in result["lines"]].count("baseline") == 1
    assert {line["method"] for line in result["lines"]} >= {"naive_bayes_probe"}
    assert "<i>flowers.csv" in result["headline"]
    assert "verdict" in str(result["entries"])
    report = local.report(job.id)
    assert "&lt;i&gt;flowers.csv" in report
    assert "<i>flowers" not in report
    assert str(settings.folder) not in report + str(result)
    rows = Ledger(settings.ledger).rows(done.run)
    assert {row.seed for row in rows} == {0, 1}
    assert not (uploads_of(settings) / kept.folder).exists()
    assert Worker(settings, local).step() is False


def test_a_trial_that_is_refused_fails_with_the_reason(settings, local) -> None:
    kept = upload(settings, flowers())
    job = local.add(
        replace(JOB, data=kept.shown, folder=kept.folder, file=kept.file, target="<no>"), 9
    )
    Worker(settings, local).step()
    done = local.get(job.id)
    assert done.state == "failed"
    assert "flowers.csv has no column '<no>'" in done.message
    assert str(settings.folder) not in done.message
    assert not (uploads_of(settings) / kept.folder).exists()


def test_a_trial_out_of_time_fails(settings, local) -> None:
    job = local.add(JOB, 9)
    Worker(replace(settings, trial_s=0.3), local).step()
    done = local.get(job.id)
    assert (done.state, "longer than 0.3 s" in done.message) == ("failed", True)


def test_a_file_that_is_gone_fails(settings, local) -> None:
    job = local.add(replace(JOB, folder="f" * 32, file="upload.csv", data="a.csv"), 9)
    Worker(settings, local).step()
    assert local.get(job.id).message == "a.csv is no longer kept here: send it again"


LONG = replace(JOB, method="losses.comp_sum_loss", paper="2304.07288", data="digits", seeds=10)
SERVER = """
import sys
from pathlib import Path
from etude.site.jobs import Jobs
from etude.site.settings import Settings
from etude.site.worker import Worker
folder = Path(sys.argv[1])
settings = Settings(database=str(folder / "papers.sqlite"), ledger=str(folder / "ledger.sqlite"),
                    folder=folder / "site", allow_trials=True)
print("up", flush=True)
Worker(settings, Jobs(settings.database)).step()
"""


def children(pid: int) -> list[int]:
    """The trials that a process has started: a test's own process has other children too."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has just ended
            found += [int(p) for p in (task / "children").read_text().split()]
    return [p for p in found if b"etude.site.child" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_a_killed_site_goes_on_by_the_ledger(settings, local, tmp_path) -> None:
    kept = upload(settings, flowers(200))
    job = local.add(replace(LONG, data=kept.shown, folder=kept.folder, file=kept.file, seeds=2), 9)
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)])
    book = Ledger(settings.ledger)
    before = wait_for(lambda: [row for run in book.runs() for row in book.rows(run.id)])
    (trial,) = children(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert gone_in(trial)  # the trial ends with the process that watched it
    before = [row for run in book.runs() for row in book.rows(run.id)]
    assert local.get(job.id).state == "running"
    assert Worker(settings, local).step() is True  # at once: its process is seen to be gone
    done = local.get(job.id)
    assert (done.state, done.starts, done.message) == ("finished", 2, "")
    after = book.rows(done.run)
    assert len(after) > len(before) > 0
    assert after[: len(before)] == before  # with their times: not measured again


def test_a_site_that_goes_down_in_order_leaves_its_trial_waiting(settings, local) -> None:
    job = local.add(LONG, 9)
    worker = Worker(settings, local)
    worker.start()
    wait_for(lambda: local.get(job.id).state == "running")
    worker.stop()
    left = local.get(job.id)
    assert (left.state, left.starts) == ("queued", 0)
    assert children(os.getpid()) == []


def test_a_running_trial_is_stopped_by_its_reader(settings, local) -> None:
    job = local.add(LONG, 9)
    worker = Worker(settings, local)
    worker.start()
    try:
        wait_for(lambda: local.get(job.id).state == "running")
        assert local.ask_stop(job.id, "ann")
        wait_for(lambda: not local.get(job.id).is_open)
    finally:
        worker.stop()
    done = local.get(job.id)
    assert (done.state, done.message) == ("stopped", "stopped by its reader")
    assert children(os.getpid()) == []
