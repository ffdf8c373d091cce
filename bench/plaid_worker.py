"""Runs in an environment with pylate: PLAID over token sets on disk; see bench/multivector.py.

    python plaid_worker.py FOLDER INDEX

FOLDER holds documents.npy and queries.npz. INDEX keeps what was built, which takes long, for the
next run over the same documents.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np


def main() -> None:
    from pylate import indexes, retrieve

    folder, kept = Path(sys.argv[1]), Path(sys.argv[2])
    with (folder / "documents.npy").open("rb") as file:
        kept /= hashlib.file_digest(file, "sha256").hexdigest()[:16]
    documents = np.load(folder / "documents.npy", mmap_mode="r")
    with np.load(folder / "queries.npz") as file:
        queries = [file[name] for name in file.files]
    built = kept / "built.json"  # written last
    index = indexes.PLAID(
        index_folder=str(kept), index_name="plaid", override=not built.exists(),
        embedding_size=documents.shape[2],
    )  # fmt: skip
    if not built.exists():
        started = time.perf_counter()
        index.add_documents(
            documents_ids=[str(n) for n in range(len(documents))],
            documents_embeddings=[np.array(one) for one in documents],
        )
        built.write_text(json.dumps({"build_s": time.perf_counter() - started}))
    build_s = json.loads(built.read_text())["build_s"]
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
