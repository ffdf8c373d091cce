"""Token sets for bench/multivector.py: real abstracts encoded, collections grown from them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from etude.lab.data import find_data

T = 60  # tokens a document


def collection(name: str, tail: str) -> list[str]:
    """Texts of a file of records .I, .W (cisi, med)."""
    content = find_data(f"{name}/{name.upper()}.{tail}").read_text(encoding="latin-1")
    found = re.findall(r"^\.W\n(.*?)(?=^\.[IXABK]|\Z)", content, re.DOTALL | re.MULTILINE)
    return [" ".join(text.split()) for text in found]


def texts() -> tuple[list[str], list[str]]:
    """Abstracts and queries, mixed in a fixed order."""
    markup = find_data("cranfield/cran.all.1400.xml").read_text(encoding="utf-8")
    asked = find_data("cranfield/cran.qry.xml").read_text(encoding="utf-8")
    documents = [" ".join(t.split()) for t in re.findall(r"<text>(.*?)</text>", markup, re.DOTALL)]
    queries = [" ".join(t.split()) for t in re.findall(r"<title>(.*?)</title>", asked, re.DOTALL)]
    for name in ("cisi", "med"):
        documents, queries = documents + collection(name, "ALL"), queries + collection(name, "QRY")
    generator = np.random.default_rng(0)
    generator.shuffle(documents)
    generator.shuffle(queries)
    return documents, [query for query in queries if len(query) >= 20]


def real_tokens(cache: Path, n: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """(n, T, 384) documents and the queries' sets, encoded once."""
    path = cache / f"token-sets-{n}.npz"
    if not path.exists():
        from etude.nets.minilm import encode_tokens

        documents, queries = texts()
        long = [text for text in documents if len(text.split()) >= T + 10]
        sets = encode_tokens(long[:n], max_tokens=T + 2)
        asked = encode_tokens(queries, max_tokens=34)
        sizes = [len(one) for one in asked]
        np.savez(path, documents=np.stack([s[:T] for s in sets]), queries=np.concatenate(asked),
                 sizes=sizes)  # fmt: skip
    with np.load(path) as file:
        cuts = np.cumsum(file["sizes"])[:-1]
        return file["documents"], np.split(file["queries"], cuts)


def grow(base: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, T, D) documents as the module's docstring says; the first ones are the real ones."""
    generator, made = np.random.default_rng(seed), np.empty((n, *base.shape[1:]), np.float32)
    made[: len(base)] = base[:n]
    for start in range(len(base), n, 1000):
        m = len(made[start : start + 1000])
        own, other, far = generator.integers(0, len(base), (3, m))
        place = generator.integers(0, T, (m, T))
        foreign = generator.random((m, T)) < 1 / 3
        rows = base[np.where(foreign, other[:, None], own[:, None]), place]
        first = generator.integers(0, T - 1, (m, T))
        rows = rows + (base[far[:, None], first] - base[far[:, None], first + 1]) / 2
        made[start : start + m] = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    return made
