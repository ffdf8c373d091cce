"""The process that reads a stranger's file and measures: ``python -m etude.site.child``.

It is told what to do by one JSON line on its input, answers in JSON lines on its output, and
ends at once when its input closes, which it does when the process that started it is gone. It
sets the bounds that the kernel keeps before it reads anything.
"""

from __future__ import annotations

import json
import os
import resource
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from etude.core import EtudeError

__all__ = ["main"]

LONGEST_WORDS = 64 << 10
MOST_FILES = 512
LARGEST_FILE = 4 << 30  # bytes of any file that it writes
SLACK = 1 << 30  # of address space for data, beyond twice the memory that is watched
Say = Callable[[Mapping[str, Any]], None]
Verb = Callable[[Mapping[str, Any], Say], dict[str, Any]]


def main(verbs: Mapping[str, Verb] | None = None) -> None:
    """Do what the line says, answer, and end; `verbs` are ``check`` and ``measure``."""
    words = json.loads(_line())
    _bound(**words["limits"])
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    lock = threading.Lock()

    def say(fact: Mapping[str, Any]) -> None:
        with lock, suppress(BrokenPipeError):
            rest = memoryview(json.dumps(dict(fact)).encode() + b"\n")
            while rest:
                rest = rest[os.write(output, rest) :]

    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        known = verbs or {"check": check, "measure": measure}
        say({"done": known[words["do"]](words, say)})
    except EtudeError as error:
        say({"refused": _named(str(error), words)})
    except MemoryError:
        say({"memory": True})
    except BaseException as error:
        say({"broke": type(error).__name__, "trace": traceback.format_exc()[-4000:]})
    os._exit(0)  # not through the exit of libraries: the answer is out


def _line() -> bytes:
    """The first line of the input, read without taking more than it."""
    line = bytearray()
    while len(line) < LONGEST_WORDS:
        piece = os.read(0, 1)
        if piece in (b"", b"\n"):
            break
        line += piece
    return bytes(line)


def _bound(seconds: float, memory: int, nice: int) -> None:
    """Limits that hold even where whoever watches this process is gone or slow."""
    processors = os.cpu_count() or 1
    bounds = {
        resource.RLIMIT_CPU: int(seconds * processors) + 10,
        resource.RLIMIT_DATA: 2 * memory + SLACK,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: LARGEST_FILE,
        resource.RLIMIT_NOFILE: MOST_FILES,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (least, least))
    os.nice(nice)
    with suppress(OSError):  # where memory ends, this process goes before the site
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_parent() -> None:
    with suppress(OSError):
        while os.read(0, 1024):
            pass
    os._exit(70)


def _named(text: str, words: Mapping[str, Any]) -> str:
    """A message with the reader's name of the file in the place of ours."""
    return text.replace(words["source"], words["shown"]) if words.get("file") else text


def check(words: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """What the data holds; refuses what cannot be tried before anyone waits for it."""
    from etude.lab.data import describe
    from etude.site.uploads import inspect

    inspect(Path(words["source"]), words["shown"])
    target = words["target"] or None
    found = describe(words["source"], target=target, missing=words["missing"])
    if not found["classes"] and words["source"].endswith(".npz"):
        raise EtudeError(f"{words['shown']} must hold an array y with the labels beside x")
    return {name: found[name] for name in ("rows", "features", "target", "target_why")}


def measure(words: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """The trial: its leaderboard as JSON values, as lines to show, and the report's page."""
    if words["file"]:
        from etude.site.uploads import inspect

        inspect(Path(words["source"]), words["shown"])
    from etude.lab.ledger import Ledger
    from etude.lab.report import report_html
    from etude.lab.run import try_method
    from etude.lab.table import board_json, notes

    board = try_method(
        words["method"], words["source"], target=words["target"] or None,
        missing=words["missing"], seeds=words["seeds"], ledger=words["ledger"],
        progress=lambda done, total, label: say({"progress": [done, total, label]}),
    )  # fmt: skip
    rows = Ledger(words["ledger"]).rows(board.run.id)
    rows = [row for row in rows if row.seed < words["seeds"]]
    shown = replace(board, data=words["shown"], run=replace(board.run, command=words["command"]))
    facts = board_json(shown)
    facts["run"].pop("spec")
    facts |= {"lines": lines(shown), "notes": notes(shown)}
    return {"run": board.run.id, "result": facts, "report": report_html(shown, rows)}


def lines(board: Any) -> list[dict[str, str]]:
    """One line an arm, as text: method, status, value, difference, interval, fit, size."""
    from etude.lab.table import SYMBOLS, name_of, scale_of, seconds, size, status_of

    scale = scale_of(board)
    shown = []
    for entry in board.entries:
        verdict, status = entry.verdict, status_of(entry, board)
        known = entry.value is not None
        shown.append({
            "method": name_of(entry.method), "status": status,
            "symbol": SYMBOLS.get(status, ""), "value": scale.value(entry.value),
            "difference": scale.difference(verdict.difference) if verdict else "",
            "interval": scale.interval(verdict) if verdict else "",
            "fit": seconds(entry.fit_s) if known else "",
            "size": size(entry.bytes) if known else "",
        })  # fmt: skip
    return shown


if __name__ == "__main__":
    main()
