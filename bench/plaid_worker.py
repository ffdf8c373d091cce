"""Runs in an environment with pylate: PLAID over token sets on disk; see bench/multivector.py."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np


def main() -> None:
    from pylate import indexes, retrieve

    folder = sys.argv[1]
    documents = np.load(f"{folder}/documents.npy", mmap_mode="r")
    with np.load(f"{folder}/queries.npz") as file:
        queries = [file[name] for name in file.files]
    started = time.perf_counter()
    index = indexes.PLAID(
        index_folder=f"{folder}/index", index_name="plaid", override=True,
        embedding_size=documents.shape[2],
    )  # fmt: skip
    index.add_documents(
        documents_ids=[str(n) for n in range(len(documents))],
        documents_embeddings=[np.array(one) for one in documents],
    )
    build_s = time.perf_counter() - started
    retriever = retrieve.ColBERT(index=index)
    found, times = [], []
    retriever.retrieve(queries_embeddings=[queries[0]], k=10)
    for query in queries:
        started = time.perf_counter()
        answer = retriever.retrieve(queries_embeddings=[query], k=10)[0]
        times.append(1e3 * (time.perf_counter() - started))
        found.append([int(one["id"]) for one in answer])
    told = {"ms": statistics.median(times), "least": min(times), "most": max(times)}
    print(json.dumps({**told, "build_s": build_s, "ids": found}))


if __name__ == "__main__":
    main()
