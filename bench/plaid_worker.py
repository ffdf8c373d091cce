"""Runs in an environment with pylate: PLAID over token sets on disk; see bench/multivector.py.

    python plaid_worker.py FOLDER INDEX [ROUNDS]

FOLDER holds documents.npy and queries.npz, or the former alone: then it only builds. INDEX keeps
what was built, which takes long, for the next run over the same documents; ROUNDS of k-means are
4 in pylate, and most of what takes long. Every setting asks the
same queries: pylate's own, and those that PLAID's release takes for 10 and for 100 answers.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

SETTINGS = {
    "pylate's": {"ncells": 8, "centroid_score_threshold": 0.35, "ndocs": 8192},
    "for 100": {"ncells": 2, "centroid_score_threshold": 0.45, "ndocs": 1024},
    "for 10": {"ncells": 1, "centroid_score_threshold": 0.5, "ndocs": 256},
}
QUANTILE = 2**24  # numbers that torch's quantile takes


def allow_many_residuals() -> None:
    """torch refuses a quantile of more numbers, and with it an index of more than about 14,500
    such documents: then the quantile is of every n-th, as many as are allowed."""
    import torch

    whole = torch.Tensor.quantile

    def thinned(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return whole(values.flatten()[:: -(-values.numel() // QUANTILE)], at)

    torch.Tensor.quantile = thinned  # type: ignore[method-assign, assignment]


def main() -> None:
    from pylate import indexes, retrieve

    allow_many_residuals()
    folder, kept, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int((*sys.argv, "4")[3])
    with (folder / "documents.npy").open("rb") as file:
        kept /= hashlib.file_digest(file, "sha256").hexdigest()[:16] + f"-{rounds}" * (rounds != 4)
    documents = np.load(folder / "documents.npy", mmap_mode="r")
    built = kept / "built.json"  # written last
    index = indexes.PLAID(
        index_folder=str(kept), index_name="plaid", override=not built.exists(),
        embedding_size=documents.shape[2], kmeans_niters=rounds,
    )  # fmt: skip
    if not built.exists():
        started = time.perf_counter()
        index.add_documents(
            documents_ids=[str(n) for n in range(len(documents))],
            documents_embeddings=list(documents),
        )
        built.write_text(json.dumps({"build_s": time.perf_counter() - started}))
    if not (folder / "queries.npz").exists():
        return
    with np.load(folder / "queries.npz") as file:
        queries = [file[name] for name in file.files]
    build_s = json.loads(built.read_text())["build_s"]
    told = {}
    for name, setting in SETTINGS.items():
        index = indexes.PLAID(
            index_folder=str(kept), index_name="plaid", override=False,
            embedding_size=documents.shape[2], **setting,
        )  # fmt: skip
        retriever, found, times = retrieve.ColBERT(index=index), [], []
        retriever.retrieve(queries_embeddings=[queries[0]], k=10)
        for query in queries:
            started = time.perf_counter()
            answer = retriever.retrieve(queries_embeddings=[query], k=10)[0]
            times.append(1e3 * (time.perf_counter() - started))
            found.append([int(one["id"]) for one in answer])
        span = {"ms": statistics.median(times), "least": min(times), "most": max(times)}
        told[name] = {**span, "build_s": build_s, "ids": found}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
