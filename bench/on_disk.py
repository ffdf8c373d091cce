"""Bi-granular search: codes in memory, vectors on disk, cold and warm.

    pip install -e ".[text,bench]"
    ETUDE_DATA=folder python bench/on_disk.py --cache /tmp/cache [--size 1000000]

Vectors as in bench/retrieval.py, saved to a folder below --cache and read from there. Warm: all
queries are answered a second time. Cold: before each query the index is loaded anew, its vectors'
pages dropped from the system's cache; loading is not timed, and what the disk itself caches stays.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from text_vectors import grow, real_vectors

from etude.core.nearest import Exact
from etude.retrieval import BiGranularIndex

N_WARM, N_COLD, TOP = 200, 30, 10


def drop(folder: Path) -> None:
    """Let the system forget the vectors' files; pages that a process maps would stay."""
    for path in folder.glob("vectors-*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def asked(index: BiGranularIndex, query: np.ndarray) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    return index.search(query[None], TOP)[0][0], 1e3 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for texts and the index")
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    real = real_vectors(options.cache, 18_000)
    real = real[np.random.default_rng(1).permutation(len(real))]
    queries, rows = real[:N_WARM], grow(real[500:], options.size)
    true = Exact(rows).search(queries, TOP)[0]
    with tempfile.TemporaryDirectory(dir=options.cache) as name:
        folder = Path(name)
        BiGranularIndex(rows.shape[1], n_near=2000, n_verified=300).add(rows).save(folder)
        del rows
        for n_threads in options.threads:
            index = BiGranularIndex.load(folder, n_threads=n_threads)
            for query in queries:
                asked(index, query)
            found, warm = zip(*(asked(index, query) for query in queries), strict=True)
            held = np.mean([np.isin(a, b).mean() for a, b in zip(found, true, strict=True)])
            n_bytes, cold = index.memory_bytes / len(index), []
            for query in queries[:N_COLD]:
                del index
                drop(folder)
                index = BiGranularIndex.load(folder, verify=False, n_threads=n_threads)
                cold.append(asked(index, query)[1])
            print(f"{len(index):,} x {queries.shape[1]}, {n_threads} thread(s): {n_bytes:.0f} bytes"
                  f" a vector in memory, recall {held:.3f}", flush=True)  # fmt: skip
            for told, times in (("warm", warm), ("cold", cold)):
                middle, late = np.percentile(times, (50, 95))
                print(f"  {told}: median {middle:.2f} ms, 95th percentile {late:.2f} ms")
            met = held >= 0.95 and n_bytes < 64 and np.median(warm) < 10
            print(f"{'met' if met else 'NOT MET':<8}recall .95 in 64 bytes, 10 ms warm", flush=True)


if __name__ == "__main__":
    main()
