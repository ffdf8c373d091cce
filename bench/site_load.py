"""Readers of the site at once: does every answer come, and how soon?

    python bench/site_load.py [--quick] [--readers N] [--seconds S] [--database URL] [--json FILE]

A site with the catalogue and two weeks of made papers runs in one process; the readers run in
another one and share two cores with it. A reader opens a connection, reads the newest day, a few
papers of it, searches, reads a feed, asks again with the tags it has, and votes now and then, so
that pages are made anew; between two pages it thinks for as long as given (a reader who never
pauses is a program). Exit status 1 where an answer failed or the 95th percentile is above
300 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2

LIMIT_MS = 300.0
VOTES = 0.002  # of all requests; each vote makes every page anew
WORDS = ("retrieval", "long tail", "attention", "calibration", "graph", "ti:loss", "embedding")
FIXED = ("/", "/papers/trending", "/methods", "/papers", "/feeds/latest.atom", "/index.json")


def fill(database: str) -> None:
    """Give the store two weeks of papers, 30 a day."""
    from datetime import date, timedelta

    from etude.papers.entry import Entry
    from etude.papers.store import Store

    rng = random.Random(0)
    nouns = ("network", "model", "transformer", "loss", "index", "graph", "vector", "head")
    store = Store(database)
    first = date(2026, 11, 22)
    store.add(
        Entry(
            title=f"{rng.choice(nouns).title()} {i}-{j} for {rng.choice(nouns)} and {k}",
            abstract=" ".join(rng.choice(nouns) for _ in range(60)),
            authors=tuple(f"Author {rng.randrange(999)}" for _ in range(5)),
            date=(first - timedelta(days=i)).isoformat(), votes=rng.randrange(90),
            categories=("cs.LG",),
        )
        for i in range(14)
        for j, k in ((n, rng.randrange(10**6)) for n in range(30))
    )  # fmt: skip
    store.close()


class Connection:
    """One kept connection that speaks as much HTTP as the site does: cheap, to load the site."""

    def __init__(self, base: str) -> None:
        self.place = urlsplit(base)
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str, tag: str = "", method: str = "GET") -> tuple[int, dict, bytes]:
        """Status, headers and body."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(self.place.hostname, self.place.port)
        reader, writer = self.streams
        lines = [f"{method} {path} HTTP/1.1", f"host: {self.place.netloc}"]
        lines += [f"if-none-match: {tag}"] if tag else []
        lines += ["content-length: 0"] if method == "POST" else []
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1")
        status, *rest = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (r.split(": ", 1) for r in rest)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(status.split()[1]), headers, body


async def reader(number: int, base: str, until: float, think: float, seen: list, errors: Counter):
    """One reader: what it reads goes to `seen` as (milliseconds, kind)."""
    rng, tags, line = random.Random(number), {}, Connection(base)
    papers: list[str] = []
    await asyncio.sleep(rng.random() * think)
    while time.monotonic() < until:
        draw = rng.random()
        path = rng.choice(FIXED)
        if draw < 0.35 and papers:
            path = rng.choice(papers)
        elif draw < 0.45:
            path = f"/papers?q={quote(rng.choice(WORDS))}"
        votes = draw > 1 - VOTES and bool(papers)
        begin = time.perf_counter()
        try:
            if votes:
                status, headers, body = await line.ask(rng.choice(papers) + "/vote", method="POST")
            else:
                status, headers, body = await line.ask(path, tags.get(path, ""))
            seen.append((1000 * (time.perf_counter() - begin), "vote" if votes else str(status)))
            if status not in ((200, 429) if votes else (200, 304)):
                errors[f"{path}: {status}"] += 1
            if status == 200 and "etag" in headers:
                tags[path] = headers["etag"]
            if path == "/" and status == 200:
                papers = re.findall(r'<h2><a href="(/papers/[^"]+)"', body.decode())
        except (OSError, EOFError, TimeoutError) as error:
            errors[f"{path}: {type(error).__name__}"] += 1
            line.streams = None
        await asyncio.sleep(think * rng.uniform(0.5, 1.5))


async def read(base: str, readers: int, seconds: float, think: float) -> tuple[list, Counter]:
    """All readers at once."""
    seen: list[tuple[float, str]] = []
    errors: Counter[str] = Counter()
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(readers):
            group.create_task(reader(number, base, until, think, seen, errors))
    return seen, errors


def start(database: str, folder: Path) -> tuple[subprocess.Popen, str]:
    """The site in a process of its own, ready to answer searches."""
    command = [
        sys.executable, "-m", "etude", "site", "--port", "0", "--no-open", "--database",
        database, "--ledger", str(folder / "ledger.sqlite"), "--folder", str(folder),
    ]  # fmt: skip
    site = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert site.stdout is not None
    base = re.search(r"http://\S+", site.stdout.readline())
    if base is None:
        raise SystemExit("the site did not start")
    while httpx2.get(base[0] + "/papers.json?q=graph", timeout=600).status_code == 503:
        time.sleep(1)
    return site, base[0]


def memory(pid: int) -> float:
    """Resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000


def main() -> int:
    """Run, print, judge."""
    ask = argparse.ArgumentParser()
    ask.add_argument("--quick", action="store_true", help="5 seconds")
    ask.add_argument("--readers", type=int, default=200)
    ask.add_argument("--seconds", type=float, default=60)
    ask.add_argument("--think", type=float, default=1.0, help="seconds between two pages")
    ask.add_argument("--database", help="an empty one; by default SQLite in a new folder")
    ask.add_argument("--json", type=Path)
    options = ask.parse_args()
    seconds = 5 if options.quick else options.seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = options.database or str(folder / "papers.sqlite")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        fill(database)
        site, base = start(database, folder)
        try:
            seen, errors = asyncio.run(read(base, options.readers, seconds, options.think))
            resident = memory(site.pid)
        finally:
            site.send_signal(signal.SIGINT)
            site.wait(30)
    for error, n in errors.most_common(10):
        print(f"{n} x {error}")
    times = sorted(ms for ms, _ in seen) or [float("inf")]
    place = {
        q: round(times[min(len(times) - 1, int(q * len(times)))], 1) for q in (0.5, 0.95, 0.99)
    }
    found = {
        "readers": options.readers, "seconds": seconds, "think_s": options.think,
        "answers": len(times), "per_second": round(len(times) / seconds, 1),
        "errors": sum(errors.values()), "median_ms": place[0.5], "p95_ms": place[0.95],
        "p99_ms": place[0.99], "longest_ms": round(times[-1], 1), "resident_mb": round(resident),
        "kinds": dict(Counter(kind for _, kind in seen)),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return int(bool(errors) or place[0.95] > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
