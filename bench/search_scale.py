"""Time and memory of etude's search at 10k, 100k and 1M papers.

    ETUDE_DATA=FOLDER python bench/search_scale.py [--sizes 10000 100000 1000000] [--peers]
        [--vectors FOLDER] [--folder FOLDER]

The papers are made: words drawn from three real abstracts each (Cranfield, CISI, MED; 60 to 180
words, a title of 4 to 12, and one rare word of its own in ten), a real vector drawn and perturbed
(noise of 0.7 of its length, then to length 1), a date, two of 40 categories. The vectors are those
that bench/search_quality.py keeps in --vectors FOLDER, else the catalogue's.

A query is 3 to 8 words of a real abstract with the common ones among them, encoded anew each time
by all-MiniLM-L6-v2: its time is in the numbers and told apart. The second kind are the judged
queries of the collections, which are long. Each index is built in one process, and searched in a
fresh one. "cpu" is the median of the process's own processor time over all its threads: on a
machine that others use it says more than the wall. Recall: the share of the exact ten nearest
that the codes with 2,000 verified candidates find.

--peers adds the time of SQLite's FTS5 and of tantivy (pip install tantivy) for the words alone,
the best 500 of any of the words, at sizes up to 100,000.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as etude site has it

import numpy as np
from search_quality import NAMES, plain, texts

from etude.papers.search import Document, Index
from etude.papers.search.ranking import nearest

N_QUERIES = 100
ROW = "{:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}"


def real(folder: Path) -> tuple[list[list[str]], list[str]]:
    """The words of each real abstract, and the judged queries."""
    words, queries = [], []
    for name in NAMES:
        documents, asked, judged = texts(folder / name, name)
        found = (f"{title} {text}".lower().split() for title, text in documents.values())
        words += [w for w in found if len(w) > 20]
        queries += [plain(asked[i]) for i in asked if i in judged]
    return words, queries


def papers(words: list[list[str]], n: int, first: int = 0) -> Iterator[Document]:
    """Papers number `first` to `first + n`, the same every time."""
    for number in range(first, first + n):
        rng = np.random.default_rng(number)
        pool = [w for at in rng.integers(len(words), size=3) for w in words[at]]
        size, title = int(rng.integers(60, 181)), int(rng.integers(4, 13))
        said = [pool[at] for at in rng.integers(len(pool), size=size + title)]
        if number % 10 == 0:
            said[-1] = f"rare{number}"
        day = f"{2000 + number % 26}-{1 + number % 12:02}-{1 + number % 28:02}"
        name, categories = f"Author {number % 999}", (f"cs.{number % 20}", f"stat.{number % 7}")
        yield Document(
            f"p{number}", " ".join(said[:title]), " ".join(said[title:]), (name,), categories,
            day, f"family{number % 20}", number % 50 == 0,
        )  # fmt: skip


def base_vectors(folder: Path | None) -> np.ndarray:
    """Real vectors: the encoded collections, else the catalogue's."""
    if folder is None:
        from etude.papers.vectors import vectors

        return vectors()
    found = []
    for name in NAMES:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            found.append(file["documents"])
    return np.concatenate(found).astype(np.float32)


def made_vectors(path: Path, base: np.ndarray, n: int) -> np.ndarray:
    """(n, D) float16 on the disk: drawn, perturbed, of length 1."""
    found = np.lib.format.open_memmap(path, "w+", np.float16, (n, base.shape[1]))
    rng = np.random.default_rng(0)
    for start in range(0, n, 20_000):
        drawn = base[rng.integers(len(base), size=min(20_000, n - start))]
        noise = rng.standard_normal(drawn.shape, dtype=np.float32) * (0.7 / drawn.shape[1] ** 0.5)
        drawn = drawn + noise
        found[start : start + len(drawn)] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return found


def build(folder: Path, n: int, vectors: Path | None) -> None:
    """Make an index of n papers; prints the seconds."""
    words, _ = real(Path(os.environ["ETUDE_DATA"]))
    made = made_vectors(folder.with_suffix(".npy"), base_vectors(vectors), n)
    start = time.perf_counter()
    Index.build(papers(words, n), folder, vectors=made)
    print(json.dumps({"build_s": time.perf_counter() - start}))


def timed(run: Callable[[str], object], queries: list[str]) -> tuple[float, float, float]:
    """Median and 95th percentile of the wall, and median processor time, in ms."""
    wall, cpu = [], []
    for query in queries:
        start, used = time.perf_counter(), time.process_time()
        run(query)
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - used))
    return float(np.median(wall)), float(np.percentile(wall, 95)), float(np.median(cpu))


def resident() -> dict[str, float]:
    """Megabytes of this process that are in memory, all and without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    known = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    return {
        "rss": int(known["VmRSS"].split()[0]) / 1e3, "own": int(known["RssAnon"].split()[0]) / 1e3,
    }  # fmt: skip


def measure(folder: Path) -> None:
    """Search an index in this process; prints the numbers."""
    from etude.papers.query_vector import query_vector

    def encode(texts: list[str]) -> np.ndarray:  # as the site encodes
        return np.stack([query_vector(text) for text in texts])

    words, judged = real(Path(os.environ["ETUDE_DATA"]))
    rng = np.random.default_rng(1)
    short = []
    for _ in range(N_QUERIES):
        pool, size = words[rng.integers(len(words))], int(rng.integers(3, 9))
        start = int(rng.integers(max(len(pool) - size, 1)))
        short.append(plain(" ".join(pool[start : start + size])) or "wing")
    start = time.perf_counter()
    index = Index.load(folder, encode)
    facts: dict[str, object] = {"load_s": time.perf_counter() - start}
    for query in short[:20]:
        index.search(query)
    facts["encode"] = timed(lambda q: encode([q]), short)
    facts["fused"] = timed(index.search, short)
    facts["judged"] = timed(index.search, [q for q in judged[::4] if q][:N_QUERIES])
    kept = {"first": "2020", "family": "family3"}
    facts["filtered"] = timed(lambda q: index.search(f"{q} cat:cs -wing", **kept), short)
    facts |= resident()
    facts["recall"] = recall(index, encode(short[:50]))
    new = list(papers(words, 10, 10_000_000))
    vectors = encode([d.encoded for d in new])
    start = time.perf_counter()
    index.extend(new, vectors)
    facts["extend_s"] = time.perf_counter() - start
    facts["found"] = index.search("rare10000000", 1)[0][0] == "p10000000"
    print(json.dumps(facts))


def recall(index: Index, queries: np.ndarray) -> float:
    """Of the exact ten nearest, the share that is among the ten nearest by the index."""
    now = index.snapshot
    scores = np.concatenate(
        [queries @ np.asarray(s["vectors"], np.float32).T for s in now.segments], axis=1
    )
    hits = 0
    for row, vector in zip(scores, queries, strict=True):
        exact = np.argpartition(-row, 10)[:10]
        hits += len(set(exact.tolist()) & set(nearest(now, vector, 10)[0].tolist()))
    return hits / (10 * len(queries))


def peers(words: list[list[str]], n: int, queries: list[str]) -> None:
    """Times of other full-text indexes for the words alone."""
    import tantivy

    table = sqlite3.connect(":memory:")
    table.execute("CREATE VIRTUAL TABLE d USING fts5(title, text, tokenize='porter unicode61')")
    schema = tantivy.SchemaBuilder()
    for name in ("title", "text"):
        schema.add_text_field(name, tokenizer_name="en_stem")
    other = tantivy.Index(schema.build())
    writer = other.writer(200_000_000, 1)
    for d in papers(words, n):
        table.execute("INSERT INTO d VALUES (?, ?)", (d.title, d.text))
        writer.add_document(tantivy.Document(title=d.title, text=d.text))
    writer.commit()
    other.reload()
    searcher = other.searcher()

    def by_fts(query: str) -> object:
        said = " OR ".join(f'"{word}"' for word in query.split())
        asked = "SELECT rowid FROM d WHERE d MATCH ? ORDER BY rank LIMIT 500"
        return table.execute(asked, (said,)).fetchall()

    def by_tantivy(query: str) -> object:
        return searcher.search(other.parse_query(query.lower(), ["title", "text"]), 500).hits

    ours = Index.build(papers(words, n))
    for name, run in (("FTS5", by_fts), ("tantivy", by_tantivy), ("etude's words", ours.search)):
        run(queries[0])
        median, p95, _ = timed(run, queries)
        print(f"words alone, {n:,} papers, {name:14} median {median:7.2f} ms, p95 {p95:7.2f} ms")


def main() -> None:
    """Build and measure each size in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--folder", type=Path, help="keeps the indexes, and uses those in it")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        verb, folder, n = chosen.step
        run = {"build": lambda: build(Path(folder), int(n), chosen.vectors)}
        run.get(verb, lambda: measure(Path(folder)))()
        return
    place = chosen.folder or Path(tempfile.mkdtemp(prefix="etude-scale-"))
    place.mkdir(parents=True, exist_ok=True)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; milliseconds")
    print(ROW.format("papers", "median", "p95", "cpu", "judged", "filter", "MB", "own MB"))
    more = []
    for n in chosen.sizes:
        folder, facts = place / f"n{n}", {}
        for verb in ("measure",) if (folder / "manifest.json").is_file() else ("build", "measure"):
            command = [sys.executable, __file__, "--step", verb, str(folder), str(n)]
            command += ["--vectors", str(chosen.vectors)] if chosen.vectors else []
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            facts |= json.loads(done.stdout.splitlines()[-1])
        fused, filtered = facts["fused"], facts["filtered"]
        cells = (*fused, facts["judged"][0], filtered[0], facts["rss"], facts["own"])
        print(ROW.format(f"{n:,}", *(f"{c:.1f}" for c in cells)), flush=True)
        more.append(
            f"{n:,}: encoding a query {facts['encode'][0]:.1f} ms (cpu {facts['encode'][2]:.1f}), "
            f"judged p95 {facts['judged'][1]:.1f},\n  filtered p95 {filtered[1]:.1f}, recall "
            f"{facts['recall']:.3f}, ten more in {facts['extend_s']:.2f} s, found "
            f"{facts['found']},\n  loaded in {facts['load_s']:.1f} s"
            + (f", built in {facts['build_s']:.0f} s" if "build_s" in facts else "")
        )
    print("\n".join(more))
    if chosen.peers:
        words, judged = real(Path(os.environ["ETUDE_DATA"]))
        peers(words, min(max(chosen.sizes), 100_000), [q for q in judged[::4] if q])


if __name__ == "__main__":
    main()
