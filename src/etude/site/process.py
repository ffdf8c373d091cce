"""Run ``etude.site.child`` under a time and a memory limit, and kill it where it breaks them.

The child gets its words by a pipe, not by its arguments or environment, which others can read;
of the environment only what Python needs, so that no secret of the site is in it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etude.core import EtudeError

__all__ = ["BrokenLimitError", "Limits", "StoppedError", "run"]

KEPT = (
    "PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "XDG_CACHE_HOME",
)  # fmt: skip
LOOK_S = 0.1  # between two looks at the memory
LONGEST_ANSWER = 16 << 20  # bytes of one line
PAGE = os.sysconf("SC_PAGE_SIZE")
log = logging.getLogger("etude.site")


@dataclass(frozen=True)
class Limits:
    """Wall time in seconds, resident memory in bytes, and how much the process gives way."""

    seconds: float
    memory: int
    nice: int = 10


class BrokenLimitError(EtudeError):
    """The process took too much or broke; it is gone, and the message says why."""


class StoppedError(EtudeError):
    """The process was stopped because `go_on` said so."""


def run(
    words: Mapping[str, Any],
    folder: Path,
    limits: Limits,
    *,
    tell: Callable[[int, int, str], object] = lambda *_: None,
    go_on: Callable[[], bool] = lambda: True,
    program: Sequence[str] = ("-m", "etude.site.child"),
) -> dict[str, Any]:
    """Let a child do `words` with `folder` as its working folder; what it answers.

    Args:
        words: what ``etude.site.child`` is told; JSON values.
        folder: also where its temporary files go.
        limits: what it may take.
        tell: gets the progress; `go_on` is asked every tenth of a second.
        program: Python's arguments for the child.

    Raises:
        BrokenLimitError: out of time or memory, or it ended without an answer.
        StoppedError: `go_on` was False.
        EtudeError: what the child refused.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", *program], cwd=folder, env=_environment(folder),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return _watch(process, {**words, "limits": asdict(limits)}, limits, tell, go_on)
    finally:
        _kill(process)


def _environment(folder: Path) -> dict[str, str]:
    known = {name: os.environ[name] for name in KEPT if name in os.environ}
    threads = str(max(1, (os.cpu_count() or 1) - 1))  # one processor is left to the readers
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    known |= {"TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return known | dict.fromkeys(counts, threads)


def _watch(
    process: subprocess.Popen[bytes],
    words: Mapping[str, Any],
    limits: Limits,
    tell: Callable[[int, int, str], object],
    go_on: Callable[[], bool],
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(dict(words)).encode() + b"\n")
        process.stdin.flush()
    output, read, end = process.stdout.fileno(), bytearray(), time.monotonic() + limits.seconds
    poller = select.poll()  # select.select fails where a thousand files are open
    poller.register(output, select.POLLIN)
    while True:
        piece = os.read(output, 1 << 16) if poller.poll(1000 * LOOK_S) else None
        if piece == b"":
            raise BrokenLimitError(_ended(process))
        read += piece or b""
        *whole, rest = read.split(b"\n")
        read = bytearray(rest)
        for line in whole:
            answer = _answer(json.loads(line), limits, tell)
            if answer is not None:
                return answer
        if len(read) > LONGEST_ANSWER:
            raise BrokenLimitError("the trial answered with more than the site reads")
        if not go_on():
            raise StoppedError("stopped")
        if time.monotonic() > end:
            raise BrokenLimitError(
                f"the trial took longer than {limits.seconds:g} s, as long as this site lets one "
                "run: try fewer seeds, or a part of the rows"
            )
        if _memory(process.pid) > limits.memory:
            raise BrokenLimitError(_too_much(limits))


def _answer(
    said: Mapping[str, Any], limits: Limits, tell: Callable[[int, int, str], object]
) -> dict[str, Any] | None:
    if "progress" in said:
        done, total, label = said["progress"]
        tell(int(done), int(total), str(label))
        return None
    if "done" in said:
        return dict(said["done"])
    if "refused" in said:
        raise EtudeError(str(said["refused"]))
    if "memory" in said:
        raise BrokenLimitError(_too_much(limits))
    log.error("a trial broke: %s", said.get("trace"))
    raise BrokenLimitError(f"the trial broke ({said.get('broke')}); the log of the site says where")


def _too_much(limits: Limits) -> str:
    return (
        f"the trial took more than {limits.memory / 1e6:,.0f} MB of memory, as much as this site "
        "lets one take: try a part of the rows or columns"
    )


def _ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(5)
    except subprocess.TimeoutExpired:
        code = 0
    by = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
    return f"the trial ended without an answer ({by})"


def _memory(pid: int) -> int:
    """Bytes in memory of a process and those it started; 0 where the system does not tell."""
    total, waiting = 0, [pid]
    while waiting:
        base = f"/proc/{waiting.pop()}"
        try:
            with open(f"{base}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * PAGE
            for task in os.listdir(f"{base}/task"):
                with open(f"{base}/task/{task}/children", encoding="ascii") as file:
                    waiting += map(int, file.read().split())
        except (OSError, IndexError):
            continue
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started: it leads a session of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
