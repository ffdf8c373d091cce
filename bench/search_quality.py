"""nDCG@10 of etude's search on Cranfield, CISI and MED, against its parts and plain fusion.

    ETUDE_DATA=FOLDER python bench/search_quality.py [--vectors FOLDER]

FOLDER holds cranfield/, cisi/ and med/ as SMART and its TREC version hand them on. Compared are
SQLite's FTS5 (BM25, Porter stems), the words of etude's index alone, the vectors of all-MiniLM-
L6-v2 alone, the plain fusion of FTS5 and the vectors by reciprocal ranks (60), the same of the
index's own words, and etude's fusion with its feedback. A cited document counts 1, others 0.

Nothing is tuned on queries that are reported: the knobs of the fusion (share of the meaning, depth
of the feedback, its trust) are chosen on one collection by the mean nDCG@10 and reported on the
other two, each of the three in turn. "chosen elsewhere" is, query by query, the mean over the two
choices that did not see the collection. "as shipped" are the defaults, middle values of ranges
that were looked at on all three: read it as what users get, not as a test. The interval of a
difference is a paired bootstrap over queries (10,000 draws, percentiles 2.5 and 97.5); that of
the average draws within each collection.

--vectors keeps the encoded texts: encoding takes minutes, everything else seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etude.core import EtudeError
from etude.papers.search import Document, Index
from etude.papers.search.fusion import RECIPE, Recipe

NAMES = ("cranfield", "cisi", "med")
GRID = [
    replace(RECIPE, share=share, feedback=feedback, trust=trust)
    for share, feedback, trust in itertools.product((0.5, 0.6, 0.7), (5, 10, 15), (0.3, 0.4, 0.5))
]
K = 10
DRAWS = 10_000


@dataclass(frozen=True)
class Collection:
    """Documents, judged queries, and the positions of the documents that answer each."""

    name: str
    documents: list[Document]
    queries: list[str]
    answers: list[set[int]]
    vectors: np.ndarray
    query_vectors: np.ndarray


def smart(path: Path) -> dict[str, dict[str, str]]:
    """Records of a SMART file: id -> field's letter -> text on one line."""
    records: dict[str, dict[str, str]] = {}
    letter, record = "", {}
    for line in path.read_text(encoding="latin-1").splitlines():
        mark = re.fullmatch(r"\.([A-Z])\s*(\d*)\s*", line)
        if mark and mark[1] == "I":
            record = records.setdefault(mark[2], {})
            letter = ""
        elif mark:
            letter = mark[1]
        elif letter:
            record[letter] = f"{record.get(letter, '')} {line}".strip()
    return records


def texts(folder: Path, name: str) -> tuple[dict, dict, dict]:
    """Documents (title, text), queries and judgments of a collection, by their ids."""
    judged: dict[str, set[str]] = {}
    if name == "cranfield":

        def fields(path: Path, whole: str, *parts: str) -> list[list[str]]:
            found = re.findall(rf"<{whole}>(.*?)</{whole}>", path.read_text("latin-1"), re.S)
            tags = [[re.search(rf"<{p}>(.*?)</{p}>", f, re.S) for p in parts] for f in found]
            return [[" ".join(tag[1].split()) if tag else "" for tag in row] for row in tags]

        documents = {}
        rows = fields(folder / "cran.all.1400.xml", "doc", "docno", "title", "text")
        for number, title, text in rows:
            documents[number] = (title, text.removeprefix(title).strip())
        tops = fields(folder / "cran.qry.xml", "top", "title")
        # The judgments count the queries from 1; <num> is the number of an older, longer list.
        queries = {str(place): title for place, (title,) in enumerate(tops, 1)}
        for line in (folder / "cranqrel.trec.txt").read_text().splitlines():
            query, _, document, degree = line.split()
            if int(degree) > 0:
                judged.setdefault(query, set()).add(document)
        return documents, queries, judged
    up = name.upper()
    documents = {
        i: (r.get("T", ""), r.get("W", "")) for i, r in smart(folder / f"{up}.ALL").items()
    }
    queries = {i: r.get("W", "") for i, r in smart(folder / f"{up}.QRY").items()}
    for line in (folder / f"{up}.REL").read_text().splitlines():
        if parts := line.split():
            judged.setdefault(parts[0], set()).add(parts[1])
    return documents, queries, judged


def load(folder: Path, name: str, cache: Path | None) -> Collection:
    """A collection with its vectors, kept in `cache` where that is given."""
    raw, asked, judged = texts(folder / name, name)
    place = {i: n for n, i in enumerate(raw)}
    documents = [Document(str(place[i]), *raw[i]) for i in raw]
    ids = [i for i in asked if i in judged]
    queries = [asked[i] for i in ids]
    path = cache / f"{name}.npz" if cache else None
    if path and path.is_file():
        with np.load(path, allow_pickle=False) as file:
            vectors, query_vectors = file["documents"], file["queries"]
    else:
        from etude.nets.minilm import encode

        print(f"encoding {len(documents)} documents of {name} ...", flush=True)
        vectors = encode([d.encoded for d in documents])
        query_vectors = encode(queries)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, documents=vectors, queries=query_vectors)
    answers = [{place[d] for d in judged[i]} for i in ids]
    return Collection(name, documents, queries, answers, vectors, query_vectors)


def gains(rankings: list[list[int]], answers: list[set[int]]) -> np.ndarray:
    """nDCG@10 of each query."""
    discount = 1 / np.log2(np.arange(2, K + 2))
    found = []
    for ranking, wanted in zip(rankings, answers, strict=True):
        hits = np.array([document in wanted for document in ranking[:K]], float)
        ideal = discount[: min(K, len(wanted))].sum()
        found.append(float(hits @ discount[: len(hits)] / ideal))
    return np.array(found)


def full_text(c: Collection) -> list[list[int]]:
    """Rankings of SQLite's FTS5, any of the query's words."""
    table = sqlite3.connect(":memory:")
    table.execute("CREATE VIRTUAL TABLE d USING fts5(title, text, tokenize='porter unicode61')")
    rows = [(n, d.title, d.text) for n, d in enumerate(c.documents)]
    table.executemany("INSERT INTO d(rowid, title, text) VALUES (?, ?, ?)", rows)
    rankings = []
    for query in c.queries:
        words = dict.fromkeys(re.findall(r"[^\W_]+", query.casefold()))
        said = " OR ".join(f'"{word}"' for word in words)
        found = table.execute(
            "SELECT rowid FROM d WHERE d MATCH ? ORDER BY bm25(d), rowid LIMIT 1000", (said,)
        )
        rankings.append([row[0] for row in found])
    return rankings


def plain_fusion(*rankings: list[list[int]]) -> list[list[int]]:
    """Reciprocal ranks with the constant 60, of the first 1,000."""
    fused = []
    for lists in zip(*rankings, strict=True):
        scores: dict[int, float] = {}
        for ranking in lists:
            for rank, document in enumerate(ranking[:1000], 1):
                scores[document] = scores.get(document, 0.0) + 1 / (60 + rank)
        fused.append(sorted(scores, key=lambda d: -scores[d]))
    return fused


def searched(c: Collection, index: Index, recipe: Recipe | None, k: int = K) -> list[list[int]]:
    """Rankings of etude's index; by words alone without a recipe."""
    index.recipe = recipe or RECIPE
    rankings = []
    for query, vector in zip(c.queries, c.query_vectors, strict=True):
        index.encode = None if recipe is None else (lambda _, v=vector: v[None])
        rankings.append([int(i) for i, _ in index.search(plain(query), k)])
    return rankings


def plain(query: str) -> str:
    """A judged query as words: none of them was written with etude's syntax in mind."""
    return re.sub(r"[^\w\s]", " ", query)


def interval(parts: list[np.ndarray]) -> tuple[float, float, float]:
    """Mean of the collections' mean differences, and its bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = np.zeros(DRAWS)
    for part in parts:
        drawn += part[rng.integers(0, len(part), (DRAWS, len(part)))].mean(axis=1) / len(parts)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(np.mean([part.mean() for part in parts])), float(low), float(high)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=Path, help="folder that keeps the encoded texts")
    chosen = parser.parse_args()
    if "ETUDE_DATA" not in os.environ:
        raise SystemExit("set ETUDE_DATA to the folder of cranfield, cisi and med")
    rows: dict[str, list[np.ndarray]] = {}
    tried: list[list[np.ndarray]] = []
    for name in NAMES:
        c = load(Path(os.environ["ETUDE_DATA"]), name, chosen.vectors)
        index = Index.build(c.documents, vectors=c.vectors)
        near = np.argsort(-(c.query_vectors @ c.vectors.T), axis=1, kind="stable").tolist()
        words, own = full_text(c), searched(c, index, None, 1000)
        for label, rankings in (
            ("words: SQLite FTS5", words), ("words: etude", own), ("vectors", near),
            ("plain fusion, FTS5", plain_fusion(words, near)),
            ("plain fusion, etude's words", plain_fusion(own, near)),
            ("etude, no feedback", searched(c, index, replace(RECIPE, feedback=0))),
            ("etude, as shipped", searched(c, index, RECIPE)),
        ):  # fmt: skip
            rows.setdefault(label, []).append(gains(rankings, c.answers))
        tried.append([gains(searched(c, index, r), c.answers) for r in GRID])
    best = [int(np.argmax([g.mean() for g in grid])) for grid in tried]
    rows["etude, chosen elsewhere"] = [
        np.mean([tried[here][best[other]] for other in range(3) if other != here], axis=0)
        for here in range(3)
    ]
    show(rows)
    for name, number in zip(NAMES, best, strict=True):
        r = GRID[number]
        print(f"chosen on {name}: share {r.share}, feedback {r.feedback}, trust {r.trust}")


def show(rows: dict[str, list[np.ndarray]]) -> None:
    """Two tables of at most 80 columns: nDCG@10, and the differences."""
    sizes = [len(part) for part in next(iter(rows.values()))]
    print("nDCG@10, queries:" + " " * 12, *(f"{n:>9}" for n in sizes))
    print(f"{'':29}", *(f"{name:>9}" for name in NAMES), f"{'average':>9}")
    for label, parts in rows.items():
        means = [part.mean() for part in parts]
        print(f"{label:29}", *(f"{m:9.4f}" for m in (*means, np.mean(means))))
    for ours in ("etude, as shipped", "etude, chosen elsewhere"):
        print(f"\n{ours}, minus  (95 % paired bootstrap interval)")
        for label, parts in rows.items():
            if label.startswith("etude"):
                continue
            differences = [a - b for a, b in zip(rows[ours], parts, strict=True)]
            cells = [interval([d]) for d in differences] + [interval(differences)]
            print(f"{label:28}", *(f"{m:+12.4f}" for m, _, _ in cells))
            spans = (f"{low:+.3f} {high:+.3f}" for _, low, high in cells)
            print(f"{'':28}", *(f"{span:>12}" for span in spans))


if __name__ == "__main__":
    try:
        main()
    except (OSError, EtudeError) as error:
        raise SystemExit(str(error)) from None
