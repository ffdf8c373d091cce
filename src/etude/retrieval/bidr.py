r"""BiDR: compact codes in memory find candidates, full vectors on disk check them.

Each stage gets a representation of its own, trained for what it meets. With R a rotation, x a
document's vector, q a query's, c_pk the codebook's rows (part p of P, row k of K):

    p(k | x_p) = softmax_k -||(R x)_p - c_pk||^2                                             (1)
    code: the most probable k;  x' = the concatenated rows c_pk; its gradient goes through (1) (2)
    loss = CE(q X^T) + CE((R q) X'^T) + w mean ||R x - x'||^2,  queries are never quantized   (3)
    score = <q, x> + code_weight <R q, x'>,  over the n_verified best by the second term     (4)

CE is over the batch's documents and negatives, other known positives masked. The second, dense
encoder is trained on batches of what the codes confuse: a walk over queries joined by documents
that the codes rank just below the hard negatives of another (`locality_centric_batches`).

Without a quantizer the index needs no training: R is random, a code holds the signs of
R (x - mean), x' is scaled by ||x - mean||^2 / sum |R (x - mean)|, so that <R q, x'> + <q, mean>
estimates <q, x>. Counting unlike bits finds `n_near` documents, and (4) starts from those.

Source: Xiao, Liu, Han et al., "Progressively Optimized Bi-Granular Document Representation ...",
WWW 2022, arXiv:2201.05409; code microsoft/BiDR. The scale of signs: Gao and Long, "RaBitQ",
SIGMOD 2024. Departures: see the card.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require
from etude.core.codec import Codec, random_rotation
from etude.core.nearest import alike, as_vectors, best, in_threads, shortlist
from etude.core.sealed import read_arrays, read_manifest
from etude.core.segments import Segments

__all__ = ["BiGranularIndex", "ContrastiveProductQuantizer", "locality_centric_batches"]

CARD = Card(
    slug="bidr",
    family="retrieval",
    title="Progressively Optimized Bi-Granular Document Representation for Scalable Embedding "
    "Based Retrieval",
    year=2022,
    arxiv="2201.05409",
    move="find candidates by compact codes in memory and check them by full vectors on disk, "
    "each representation trained for its own stage",
    task="experiment",
    claim="at 8 bytes a document, contrastively trained codes hold more of the queries' own "
    "documents among their first 10 than the OPQ codes that they started from",
    baseline="opq",
    metric="recall_at_10",
    better="higher",
    published="abstract: up to 4.3 % more recall on a million-scale corpus and up to 17.5 % on a "
    "billion-scale one",
    fidelity="full",
    cost="M",
    data=("topic_queries",),
    code="microsoft/BiDR",
    departs=(
        "The index searches all codes; the release puts them into an inverted file.",
        "code_weight is 0 by default, so that answers are inner products; the release's is 0.3.",
        "The error in (3) is one mean over all documents, rotated; the release adds a mean over "
        "positives and one over negatives, and takes the vectors as they are before rotation.",
        "A query's known positives are never its hard negatives; the loss masks them anyway.",
        "Signs of a random rotation are the codes where there is no quantizer.",
    ),
    example={"dim": 8, "n_near": 20, "n_verified": 10},
)

KIND = "etude.bidr/1"
SAMPLE = 100_000  # rows that the mean is taken from


class ContrastiveProductQuantizer(nn.Module):
    """Equations (1) to (3). Start `rotation` and `codebook` from OPQ where there is one.

    Args:
        dim: width D of the vectors, a multiple of `n_parts`.
        n_parts, n_centroids: bytes P of a code, and rows K <= 256 of a part's codebook.
        rotation: (D, D) orthogonal R; None is the identity.
        codebook: (P, K, D / P); None draws it uniformly in +-0.1.
        train_rotation: whether R is trained as well (the release keeps OPQ's).
        generator: of the random codebook."""

    def __init__(
        self, dim: int, *, n_parts: int = 8, n_centroids: int = 256,
        rotation: Tensor | None = None, codebook: Tensor | None = None,
        train_rotation: bool = False, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require(n_parts >= 1, "n_parts", "at least 1", n_parts)
        require(dim >= 1 and dim % n_parts == 0, "dim", f"a multiple of {n_parts}", dim)
        require(1 <= n_centroids <= 256, "n_centroids", "from 1 to 256", n_centroids)
        self.dim, self.n_parts, self.n_centroids = dim, n_parts, n_centroids
        shape = (n_parts, n_centroids, dim // n_parts)
        rows = torch.rand(shape, generator=generator) * 0.2 - 0.1 if codebook is None else codebook
        turn = torch.eye(dim) if rotation is None else rotation
        require(rows.shape == shape, "codebook", f"of shape {shape}", rows)
        require(turn.shape == (dim, dim), "rotation", f"of shape {(dim, dim)}", turn)
        self.codebook = nn.Parameter(rows.clone())
        self.rotation = nn.Parameter(turn.clone(), requires_grad=train_rotation)

    def rotate(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> R x, the space of the codebook; for queries this is all."""
        return embeddings @ self.rotation.T

    def probs(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, P, K), equation (1)."""
        parts = self.rotate(embeddings).reshape(len(embeddings), self.n_parts, -1)
        near = 2 * torch.einsum("bpd,pkd->bpk", parts, self.codebook)
        return (near - (self.codebook**2).sum(-1)).softmax(-1)  # (1) without ||v_p||^2, as it may

    def codes(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, P) uint8."""
        return self.probs(embeddings).argmax(-1).to(torch.uint8)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> x' of equation (2), in rotated space."""
        soft = self.probs(embeddings)
        hard = F.one_hot(soft.argmax(-1), self.n_centroids).to(soft.dtype)
        chosen = hard - soft.detach() + soft  # (2)
        return torch.einsum("bpk,pkd->bpd", chosen, self.codebook).flatten(1)

    def loss(
        self, queries: Tensor, documents: Tensor, *, known: Tensor | None = None,
        error_weight: float = 1e-6,
    ) -> Tensor:  # fmt: skip
        """Equation (3), a mean over the batch, in nats. queries (B, D); documents (M, D), the
        first B the queries' own; known (B, M) bool, True where a positive of the query."""
        B, quantized = len(queries), self(documents)
        target = torch.arange(B, device=queries.device)
        scores = [queries @ documents.T, self.rotate(queries) @ quantized.T]
        if known is not None:
            others = known & ~torch.eye(B, len(documents), dtype=torch.bool, device=known.device)
            scores = [one.masked_fill(others, -1e4) for one in scores]
        error = ((self.rotate(documents) - quantized) ** 2).sum(-1).mean()
        return sum(F.cross_entropy(one, target) for one in scores) + error_weight * error  # (3)


def locality_centric_batches(
    ranking: np.ndarray, positives: Sequence[Sequence[int]], *, batch_size: int,
    n_documents: int, n_negatives: int = 1, hard: tuple[int, int] = (0, 200),
    links: tuple[int, int] = (200, 400), walk: str = "random_walk", seed: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:  # fmt: skip
    """One epoch of batches: query rows (b,), a positive of each (b,), negatives (b, n_negatives).

    ranking (Q, R): document rows by the codes' score, best first; ranks in `hard` are negatives,
    documents at ranks in `links` link back to the query. A batch starts at a random query; those
    linked to the negatives drawn join a list, of which the last is next ("random_walk") or the
    first ("snowball"). Every query comes once."""
    require(walk in ("random_walk", "snowball"), "walk", "random_walk or snowball", walk)
    require(batch_size >= 1, "batch_size", "at least 1", batch_size)
    require(len(ranking) == len(positives), "positives", "one list a query", len(positives))
    generator, linked = np.random.default_rng(seed), defaultdict(list)
    for query, documents in enumerate(ranking[:, slice(*links)].tolist()):
        for document in documents:
            linked[document].append(query)
    unused = set(order := generator.permutation(len(ranking)).tolist())
    while unused:
        batch, taken, waiting = [], set(), []
        while len(batch) < batch_size and unused:
            waiting = [query for query in waiting if query in unused]
            while not waiting:
                waiting = [query for query in [order.pop()] if query in unused]
            unused.discard(query := waiting.pop(-1 if walk == "random_walk" else 0))
            own = int(generator.choice(positives[query]))
            barred = taken | {own, *positives[query]}
            drawn = [d for d in ranking[query, slice(*hard)].tolist() if d not in barred]
            drawn = generator.permutation(drawn).astype(int)[:n_negatives].tolist()
            drawn += generator.integers(n_documents, size=n_negatives - len(drawn)).tolist()
            taken.update([own, *drawn])
            waiting += [other for d in drawn for other in linked[d] if other in unused]
            batch.append((query, own, drawn))
        yield tuple(np.array(part, dtype=np.int64) for part in zip(*batch, strict=True))


class BiGranularIndex:
    """Search by equation (4): codes in memory, full vectors where `add` or `save` left them.

    In memory are P + 4 bytes a vector (52 for D = 384 and signs), and 8 for an unsaved id. The
    defaults hold 0.99 of the exact 10 best of a million sentence embeddings of `dim` 384.

    Args:
        n_near, n_verified: documents taken by unlike bits (no quantizer); then, read in full.
        code_weight: weight of the code's score in (4).
        quantizer: trained codes; None takes signs, with D rounded up to a multiple of 64.
        rotate: False takes the signs unrotated, for coordinates that are alike (a count sketch).
        n_threads, seed: threads that share a search; seed of the random rotation."""

    def __init__(
        self, dim: int, *, n_near: int = 4000, n_verified: int = 600, code_weight: float = 0.0,
        quantizer: ContrastiveProductQuantizer | None = None, rotate: bool = True,
        n_threads: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        counts = {"dim": dim, "n_near": n_near, "n_verified": n_verified, "n_threads": n_threads}
        for name, value in counts.items():
            require(value >= 1, name, "at least 1", value)
        require(0 <= code_weight < np.inf, "code_weight", "at least 0", code_weight)
        require(seed >= 0, "seed", "at least 0", seed)
        require(quantizer is None or quantizer.dim == dim, "quantizer", f"of dim {dim}", quantizer)
        require(rotate or dim % 64 == 0, "dim", "a multiple of 64 where nothing rotates", dim)
        self.dim, self.n_near, self.n_verified = dim, n_near, n_verified
        self.rotate, self.seed = rotate, seed
        self.code_weight, self.quantizer, self.n_threads = code_weight, quantizer, n_threads
        self._codec: Codec | None = None

    def __len__(self) -> int:
        return 0 if self._codec is None else len(self._rows)

    @property
    def memory_bytes(self) -> int:
        """Bytes of codes, factors and unsaved ids."""
        return 0 if self._codec is None else self._rows.n_bytes

    def fit(self, vectors: np.ndarray) -> BiGranularIndex:
        """Take the mean from (N, D) vectors, of which none is added; the first `add` does it."""
        require(len(self) == 0, "fit", "called before anything is added", len(self))
        some, _ = as_vectors(vectors[:: len(vectors) // SAMPLE + 1], "vectors", self.dim)
        require(len(some) > 0, "vectors", "at least one row", vectors)
        if self.quantizer is None:
            rotation = random_rotation(self.dim, self.seed) if self.rotate else None
            self._codec = Codec(rotation, some.mean(axis=0))
        else:
            q = {n: w.detach().cpu().float().numpy() for n, w in self.quantizer.named_parameters()}
            self._codec = Codec(q["rotation"], np.zeros(self.dim, np.float32), q["codebook"])
        self._rows = Segments(self.dim, self._codec.code_bytes)
        return self

    def add(
        self, vectors: np.ndarray, *, ids: np.ndarray | None = None,
        code_vectors: np.ndarray | None = None,
    ) -> BiGranularIndex:  # fmt: skip
        """Append (N, D) documents; `vectors` is kept by reference where float32 (a memory map
        stays on disk). ids (N,) int default to row numbers. `code_vectors` (N, D) are encoded
        in place of `vectors` where the codes have an encoder of their own. Raises EtudeError
        for another width than D, values not finite, or an id that is there already."""
        full, _ = as_vectors(vectors, "vectors", self.dim)
        coded = alike(full, code_vectors, "code_vectors")
        if self._codec is None:
            self.fit(coded)
        ids = np.arange(len(self), len(self) + len(full)) if ids is None else np.asarray(ids)
        self._rows.append(self._codec.encode, coded, ids, full)
        return self

    def search(
        self, queries: np.ndarray, k: int = 10, *, code_queries: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) -> ids (B, min(k, N)) int64 and float32 scores (4), best first, equal ones by id.

        Raises EtudeError for k below 1, another width than D, or values not finite.
        """
        require(k >= 1, "k", "at least 1", k)
        full, _ = as_vectors(queries, "queries", self.dim)
        coded = alike(full, code_queries, "code_queries")
        shape = (len(full), min(k, len(self)))
        ids, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
        alone = len(full) < self.n_threads  # then threads share a query's scan

        def answer(first: int, last: int) -> None:
            for b in range(first, last):
                table, signs, offset = self._codec.ask(coded[b])
                rows, rough = shortlist(
                    self._rows.codes, self._rows.factors, table, signs=signs,
                    n_kept=max(self.n_verified, k), n_near=max(self.n_near, self.n_verified, k),
                    n_threads=self.n_threads if alone else 1,
                )  # fmt: skip
                exact = self._rows.products(rows, full[b])
                total = exact + self.code_weight * (rough + offset)  # (4)
                ids[b], scores[b] = best(total, self._rows.ids(rows), k)

        if ids.size:
            in_threads(answer, len(full), 1 if alone else self.n_threads)
        return ids, scores

    def save(self, path: str | Path) -> None:
        """Write to the folder `path` what it lacks; who has loaded it before keeps that state."""
        require(self._codec is not None, "index", "fitted before it is saved", "none of it")
        names = ("n_near", "n_verified", "code_weight", "rotate", "seed")
        facts = {"dim": self.dim, "options": {name: getattr(self, name) for name in names}}
        self._rows.save(Path(path), KIND, self._codec.arrays(), facts)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True, n_threads: int = 1) -> BiGranularIndex:
        """The index that `save` wrote, its full vectors read-only on disk.

        `verify` reads every file once and compares its sum; without it sizes alone. Raises
        EtudeError with the name of a file that is missing, cut or changed."""
        folder = Path(path)
        facts = read_manifest(folder, KIND)
        index = cls(facts["dim"], n_threads=n_threads, **facts["options"])
        arrays = read_arrays(folder, facts["arrays"], verify=verify)
        index._codec = Codec(**{"rotation": None, **arrays})
        index._rows = Segments(index.dim, index._codec.code_bytes)
        index._rows.load(folder, facts["segments"], verify=verify)
        return index
