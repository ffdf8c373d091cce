"""The table of trials: one runs at a time, a lease that ran out waits again once."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import sqlalchemy as sa

from etude.core import EtudeError
from etude.site import jobs as table
from etude.site.jobs import JOBS, Job, Jobs, QueueFullError
from etude.site.worker import command_of, is_gone

ME, OTHER = "host|1|me", "host|2|other"
JOB = Job(paper="2302.02334", method="heads.naive_bayes_probe", data="iris", seeds=2, made_by="ann")


@pytest.fixture
def jobs(database):
    made = Jobs(database)
    yield made
    made.close()


def test_a_job_comes_back_whole(jobs) -> None:
    made = jobs.add(replace(JOB, target="größe", folder="f" * 32, file="upload.csv"), 5)
    assert len(made.id) == 16
    assert jobs.get(made.id) == made
    assert (made.state, made.is_open, made.target) == ("queued", True, "größe")
    assert jobs.get("0" * 16) is None


def test_the_queue_is_bounded(jobs) -> None:
    first = jobs.add(JOB, 2)
    second = jobs.add(JOB, 2)
    assert (jobs.ahead(first), jobs.ahead(second)) == (0, 1)
    with pytest.raises(QueueFullError, match="2 trials wait already"):
        jobs.add(JOB, 2)
    assert jobs.claim(ME).id == first.id
    third = jobs.add(JOB, 2)  # one runs, two wait
    assert jobs.ahead(third) == 2


def test_the_oldest_is_claimed_and_only_one(jobs) -> None:
    first, second = jobs.add(JOB, 9), jobs.add(JOB, 9)
    got = jobs.claim(ME)
    assert (got.id, got.state, got.starts) == (first.id, "running", 1)
    assert jobs.claim(OTHER) is None
    assert jobs.finish(first.id, ME, "finished", run="abc", result={"a": [1, None]}, report="<p>")
    assert (jobs.result(first.id), jobs.report(first.id)) == ({"a": [1, None]}, "<p>")
    assert jobs.get(first.id).run == "abc"
    assert jobs.result(second.id) is None
    assert jobs.claim(OTHER).id == second.id


def test_many_processes_never_run_two(database) -> None:
    tables = [Jobs(database) for _ in range(4)]
    for _ in range(12):
        tables[0].add(JOB, 99)
    running, most, ran, lock = set(), [0], [], threading.Lock()

    def work(book: Jobs, owner: str) -> None:
        idle = 0
        while idle < 40:
            job = book.claim(owner)
            if job is None:
                idle += 1
                time.sleep(0.01)
                continue
            idle = 0
            with lock:
                running.add(job.id)
                most[0] = max(most[0], len(running))
                ran.append(job.id)
            time.sleep(0.01)
            with lock:
                running.discard(job.id)
            assert book.finish(job.id, owner, "finished")

    threads = [threading.Thread(target=work, args=(book, f"o{i}")) for i, book in enumerate(tables)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert len(ran) == len(set(ran)) == 12
    for book in tables:
        book.close()


def test_the_database_itself_refuses_a_second_running_row(jobs) -> None:
    for _ in range(2):
        jobs.add(JOB, 9)
    with pytest.raises(EtudeError, match="contradicts"), jobs.database.begin() as connection:
        connection.execute(sa.update(JOBS).values(state="running"))


def test_beats_renew_and_tell(jobs, monkeypatch) -> None:
    made = jobs.add(JOB, 9)
    jobs.claim(ME)
    assert jobs.beat(made.id, ME, (3, 8, "x" * 500)) is True
    seen = jobs.get(made.id)
    assert (seen.done, seen.total, len(seen.label)) == (3, 8, 200)
    assert jobs.beat(made.id, OTHER) is None
    assert jobs.finish(made.id, OTHER, "finished") is False
    assert jobs.ask_stop(made.id, "bob") is False
    assert jobs.beat(made.id, ME) is True
    assert jobs.ask_stop(made.id, "ann") is True
    assert jobs.beat(made.id, ME) is False
    assert jobs.get(made.id).wish == 1


def test_a_waiting_job_is_stopped_at_once(jobs) -> None:
    made = jobs.add(JOB, 9)
    assert jobs.ask_stop(made.id, "bob") is False
    assert jobs.ask_stop(made.id, "ann") is True
    assert jobs.get(made.id).state == "stopped"
    assert jobs.claim(ME) is None
    assert jobs.ask_stop(made.id, "ann") is False


def test_a_lease_that_ran_out_waits_again_once_then_fails(jobs, monkeypatch) -> None:
    made = jobs.add(JOB, 9)
    monkeypatch.setattr(table, "LEASE_S", -1.0)
    assert jobs.claim(ME).starts == 1
    assert jobs.recover() == []
    assert jobs.get(made.id).state == "queued"
    assert jobs.beat(made.id, ME) is None  # it is no longer this process's
    assert jobs.claim(OTHER).starts == 2
    (ended,) = jobs.recover()
    assert (ended.id, ended.state) == (made.id, "failed")
    assert "went down twice" in jobs.get(made.id).message
    assert jobs.idle()


def test_a_lease_that_runs_is_left_alone(jobs) -> None:
    made = jobs.add(JOB, 9)
    jobs.claim(ME)
    assert jobs.recover() == []
    assert jobs.recover(lambda owner: owner != ME) == []
    assert jobs.get(made.id).state == "running"
    assert not jobs.idle()
    jobs.recover(lambda owner: owner == ME)
    assert jobs.get(made.id).state == "queued"


def test_a_wish_to_stop_outlives_its_process(jobs, monkeypatch) -> None:
    made = jobs.add(JOB, 9)
    monkeypatch.setattr(table, "LEASE_S", -1.0)
    jobs.claim(ME)
    jobs.ask_stop(made.id, "ann")
    jobs.recover()
    assert jobs.get(made.id).state == "stopped"


def test_release_does_not_count_as_a_start(jobs) -> None:
    made = jobs.add(JOB, 9)
    for _ in range(3):
        assert jobs.claim(ME).starts == 1
        jobs.release(made.id, ME)
    assert jobs.get(made.id).state == "queued"


def test_files_of_others_are_not_listed(jobs) -> None:
    jobs.add(JOB, 9)
    mine = jobs.add(replace(JOB, folder="f" * 32, data="mine.csv"), 9)
    jobs.add(replace(JOB, folder="e" * 32, data="his.csv", made_by="bob"), 9)
    assert [job.data for job in jobs.recent("ann")] == ["mine.csv", "iris"]
    assert [job.data for job in jobs.recent("")] == ["iris"]
    assert jobs.recent("ann", 1) == [mine]
    assert jobs.recent("ann", paper="other") == []


def test_whose_process_is_gone() -> None:
    import socket

    host = socket.gethostname()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_gone(f"{host}|{ended.pid}|x")
    assert is_gone(f"{host}|{os.getpid()}|of an earlier process with our number")
    assert not is_gone(f"{host}|{os.getppid()}|x")
    assert not is_gone(f"elsewhere|{ended.pid}|x")
    assert not is_gone("")


def test_the_command_repeats_the_trial() -> None:
    assert command_of(JOB) == "etude try naive_bayes_probe --data iris --seeds 2"
    odd_job = replace(JOB, data="a b.csv", target="$(rm -rf)", missing="drop")
    assert command_of(odd_job) == (
        "etude try naive_bayes_probe --data 'a b.csv' --target '$(rm -rf)' --missing drop --seeds 2"
    )
