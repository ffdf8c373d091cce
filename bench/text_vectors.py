"""The vectors of bench/retrieval.py: real texts encoded, and collections grown from them."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from etude.core.nearest import Exact
from etude.lab.data import find_data


def texts() -> list[str]:
    """Short real texts, each once, in a fixed random order."""
    found: list[str] = []
    for part in json.loads(find_data("clinc150/data_full.json").read_text()).values():
        found += [text for text, _ in part]
    for name in ("train", "test"):
        rows = find_data(f"banking77/{name}.csv").read_text(encoding="utf-8")
        found += [row["text"] for row in csv.DictReader(io.StringIO(rows))]
    for name in ("subjectivity", "sentence_polarity"):
        with zipfile.ZipFile(find_data(f"nltk-text/{name}.zip")) as file:
            for member in file.namelist():
                if not member.endswith("/") and "README" not in member:
                    found += file.read(member).decode("latin-1").splitlines()
    once = list(dict.fromkeys(text.strip() for text in found if 12 <= len(text) <= 400))
    np.random.default_rng(0).shuffle(once)
    return once


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def real_vectors(cache: Path, n: int) -> np.ndarray:
    """(n, 384) MiniLM vectors; encoding takes a minute a few thousand, hence the cache."""
    path = cache / "minilm.npy"
    if not path.exists():
        from etude.nets.minilm import encode

        np.save(path, encode(texts()[:n]))
    return np.load(path)


def wordllama_vectors(wheel: Path, cache: Path, n: int) -> np.ndarray:
    """(n, 256) Matryoshka vectors of the package's token table: the mean over tokens, unit."""
    path = cache / "wordllama.npy"
    if not path.exists():
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        with zipfile.ZipFile(wheel) as file:
            weights = load(file.read("wordllama/weights/l2_supercat_256.safetensors"))
            config = "wordllama/tokenizers/l2_supercat_tokenizer_config.json"
            tokenizer = Tokenizer.from_str(file.read(config).decode())
        tokenizer.no_padding()
        table = next(iter(weights.values())).astype(np.float32)
        ids = tokenizer.encode_batch(texts()[:n], add_special_tokens=False)
        np.save(path, unit(np.stack([table[one.ids].mean(axis=0) for one in ids])))
    return np.load(path)


def grow(base: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, D) rows as the module's docstring says."""
    near, generator = Exact(base).search(base, 11)[0][:, 1:], np.random.default_rng(seed)
    grown = np.empty((n, base.shape[1]), np.float32)
    for start in range(0, n, 65536):
        m = len(grown[start : start + 65536])
        a, b = generator.integers(0, len(base), (2, m))
        c, d = (near[rows, generator.integers(0, 10, m)] for rows in (a, b))
        step = generator.random((m, 1), dtype=np.float32) / 2
        grown[start : start + m] = unit(
            base[a] + step * (base[c] - base[a]) + (base[b] - base[d]) / 2
        )
    return grown


def neighborhood(rows: np.ndarray, queries: np.ndarray, name: str) -> None:
    """Prints the similarity of the 1st, 10th and 50th neighbor and the local dimension."""
    _, scores = Exact(rows).search(queries, 50)
    far = np.sqrt(np.maximum(2 - 2 * scores, 1e-9))
    local = -1 / np.log(far[:, :-1] / far[:, -1:]).mean(axis=1)
    some = ", ".join(f"{x:.3f}" for x in np.median(scores[:, [0, 9, 49]], axis=0))
    print(f"{name:<34} similarity at 1, 10, 50: {some}; dimension {np.median(local):.1f}")
