"""The bounded process: time, memory, secrets, and what it leaves behind."""

import os
import resource

import pytest
from trying import gone_in

from etude.site import process

HOLD = """
import time
from etude.site import child
def hold(words, say):
    taken = []
    while True:
        say({"progress": [len(taken), 0, "holding"]})
        taken.append(bytearray(words["bytes"]))
        for _ in range(0, words["bytes"], 4096):
            taken[-1][_] = 1
        time.sleep(0.05)
def look(words, say):
    import os, resource
    return {
        "env": dict(os.environ), "nice": os.nice(0), "leads": os.getsid(0) == os.getpid(),
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
        "files": os.listdir("/proc/self/fd"), "place": os.getcwd(),
    }
def burst(words, say):
    import numpy
    return {"len": len(numpy.empty(words["bytes"], dtype="u1"))}  # of which nothing is used
def chatter(words, say):
    print("not an answer", flush=True)
    os_write = __import__("os").write
    os_write(1, b"nor this\\n")
    return {"fine": 1}
def spawn(words, say):
    import subprocess, sys
    sub = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    say({"progress": [sub.pid, 0, "spawned"]})
    time.sleep(60)
def die(words, say):
    import os
    os.kill(os.getpid(), 11)
def wrong(words, say):
    raise RuntimeError("secret /root/path")
child.main({f.__name__: f for f in (hold, look, burst, chatter, spawn, die, wrong)})
"""


def odd(tmp_path, do, seconds=20.0, memory=1 << 30, **more):
    facts = {"do": do, "source": "", "shown": "", **more.pop("words", {})}
    limits = process.Limits(seconds, memory)
    return process.run(facts, tmp_path, limits, program=("-c", HOLD), **more)


def test_a_busy_site_with_many_open_files_still_hears_its_child(tmp_path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1500 if hard == resource.RLIM_INFINITY else min(1500, hard)
    if wanted < 1200:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    opened = []
    try:
        opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
        assert odd(tmp_path, "look")
    finally:
        for handle in opened:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_child_has_no_secret_and_is_bounded(tmp_path, monkeypatch) -> None:
    secrets = ("ETUDE_SECRET", "ETUDE_TOKEN", "ETUDE_SMTP", "ETUDE_PAPERS", "ETUDE_LEDGER")
    for name in (*secrets, "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hidden-word")
    seen = odd(tmp_path, "look")
    assert "hidden-word" not in str(seen["env"])
    assert "PATH" in seen["env"]
    assert (seen["leads"], seen["core"], seen["place"]) == (True, 0, str(tmp_path))
    assert seen["nice"] == os.nice(0) + 10
    assert 0 < seen["data"] <= 4 << 30
    assert len(seen["files"]) <= 6


def test_too_long_is_killed(tmp_path) -> None:
    with pytest.raises(process.BrokenLimitError, match="longer than 1 s"):
        odd(tmp_path, "hold", 1.0, words={"bytes": 1})  # which would never end


def test_too_much_memory_is_killed(tmp_path) -> None:
    seen: list[int] = []
    words = {"bytes": 20 << 20}
    with pytest.raises(process.BrokenLimitError, match="more than 300 MB of memory"):
        odd(tmp_path, "hold", 60.0, 300_000_000, words=words, tell=lambda n, *_: seen.append(n))
    assert 5 <= seen[-1] < 40  # the watch stopped it, long before the kernel would have


def test_the_kernel_refuses_what_the_watch_cannot_see(tmp_path) -> None:
    with pytest.raises(process.BrokenLimitError, match="of memory"):
        odd(tmp_path, "burst", 60.0, 300_000_000, words={"bytes": 8 << 30})


def test_what_a_child_starts_dies_with_it(tmp_path) -> None:
    seen: list[int] = []
    with pytest.raises(process.StoppedError):
        odd(tmp_path, "spawn", tell=lambda done, *_: seen.append(done), go_on=lambda: not seen)
    assert gone_in(seen[0])


def test_prints_are_no_answers_and_deaths_are_told(tmp_path) -> None:
    assert odd(tmp_path, "chatter") == {"fine": 1}
    with pytest.raises(process.BrokenLimitError, match="SIGSEGV"):
        odd(tmp_path, "die")
    with pytest.raises(process.BrokenLimitError, match=r"broke \(RuntimeError\)") as error:
        odd(tmp_path, "wrong")
    assert "secret" not in str(error.value)
