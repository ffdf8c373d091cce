"""Contrastive codes against OPQ, then locality-centric batches against random ones.

Data: `topic_queries`, drawn anew for each seed. 20,000 documents in 64 observed coordinates are
a noisy nonlinear image of 16 hidden ones, which cluster in 400 topics; a query shows another
noisy image of its document's hidden point, with fewer of its details. Each of 6,000 queries has
one document of its own: 4,000 for training, 500 for validation, 1,500 for the test. Encoders of
queries and documents are networks of one hidden layer and 32 outputs.

The draws start at 50: the number of steps and OPQ's sample were settled after a look at draw 0.

Stage 1. A dense encoder is trained with random negatives; OPQ is fitted to its document vectors
(8 bytes each, 8 parts of 256 rows; 4 as a further setting). "bidr" trains encoder, and
codebook from that OPQ, by the loss of the paper; "opq" trains the encoder for as many further
steps by the same loss without the quantized term and fits OPQ anew; "cold_start" is "bidr" from
a random codebook. Three learning rates an arm, chosen by validation recall. Measured: the share
of test queries whose own document is among the first 10 by the codes' scores.

Stage 2. The stage 1 codes of "bidr" rank documents for the training queries; a fresh dense
encoder is trained on batches of `locality_centric_batches` ("bidr"), on batches with the same
hard negatives in random order ("hard_negatives") or with random ones ("random_negatives"), for
equally many steps at the same three learning rates. Measured: the same share after the first
N_CANDIDATES by the codes are reordered by the dense product plus 0.3 times the codes' score.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from etude.retrieval.bidr import (
    BiGranularIndex,
    ContrastiveProductQuantizer,
    locality_centric_batches,
)
from etude.tasks.base import Pair

__all__ = ["measure"]

N_DOCUMENTS, N_TOPICS, HIDDEN, SEEN, DIM = 20_000, 400, 16, 64, 32
N_TRAIN, N_VALIDATION, N_TEST = 4000, 500, 1500
BATCH, N_STEPS, N_CANDIDATES, TOP = 64, 500, 100, 10
N_SAMPLE = 5000  # documents that OPQ is fitted to
LEARNING_RATES = (1e-3, 3e-4, 3e-3)
SIZES = (8, 4)  # bytes a document, the headline's first
CODE_WEIGHT = 0.3
FIRST_DRAW = 50
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Corpus:
    """documents (N, SEEN), queries (Q, SEEN), own (Q,): the document of each query."""

    documents: Tensor
    queries: Tensor
    own: np.ndarray

    def part(self, first: int, n: int) -> tuple[Tensor, np.ndarray]:
        """Queries and own documents of a part."""
        return self.queries[first : first + n], self.own[first : first + n]


def topic_queries(seed: int) -> Corpus:
    """The corpus of one seed."""
    generator = np.random.default_rng([seed, 22_01])
    topics = generator.standard_normal((N_TOPICS, HIDDEN))
    hidden = topics[generator.integers(0, N_TOPICS, N_DOCUMENTS)]
    hidden = hidden + 0.5 * generator.standard_normal(hidden.shape)
    first, second = (generator.standard_normal((HIDDEN, SEEN)) / 4 for _ in range(2))
    own = generator.choice(N_DOCUMENTS, N_TRAIN + N_VALIDATION + N_TEST, replace=False)

    def seen(points: np.ndarray, mix: np.ndarray, noise: float) -> Tensor:
        image = np.tanh(points @ mix) + noise * generator.standard_normal((len(points), SEEN))
        return torch.from_numpy(image.astype(np.float32))

    return Corpus(seen(hidden, first, 0.2), seen(hidden[own], second, 0.4), own)


class Encoder(nn.Module):
    """One tower for queries, one for documents: unit vectors times a learned scale."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.query, self.document = (
                nn.Sequential(nn.Linear(SEEN, 128), nn.ReLU(), nn.Linear(128, DIM))
                for _ in range(2)
            )


def opq(
    vectors: Tensor, n_parts: int, seed: int, *, n_rounds: int = 15
) -> ContrastiveProductQuantizer:
    """OPQ: by turns a step of k-means in every part, and the best rotation for the codes."""
    generator = torch.Generator().manual_seed(seed)
    vectors = vectors[torch.randperm(len(vectors), generator=generator)[:N_SAMPLE]]
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]
    rows = vectors[:256] @ turn.T
    found = ContrastiveProductQuantizer(
        DIM, n_parts=n_parts, rotation=turn,
        codebook=rows.reshape(256, n_parts, -1).transpose(0, 1),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(n_rounds):
            parts = found.rotate(vectors).reshape(len(vectors), n_parts, -1)
            codes = found.codes(vectors).long()
            decoded = torch.empty_like(parts)
            for p in range(n_parts):
                counts = torch.bincount(codes[:, p], minlength=256)
                sums = torch.zeros(256, parts.shape[2]).index_add_(0, codes[:, p], parts[:, p])
                used = counts > 0
                found.codebook[p, used] = sums[used] / counts[used, None]
                decoded[:, p] = found.codebook[p, codes[:, p]]
            left, _, right = torch.linalg.svd(decoded.flatten(1).T @ vectors)
            found.rotation.copy_(left @ right)
    return found


def random_batches(corpus: Corpus, seed: int) -> Iterator[Batch]:
    """Endless: queries at random, a random negative each."""
    generator = np.random.default_rng(seed)
    while True:
        queries = generator.choice(N_TRAIN, BATCH, replace=False)
        yield queries, corpus.own[queries], generator.integers(0, N_DOCUMENTS, (BATCH, 1))


def hard_batches(corpus: Corpus, ranking: np.ndarray, seed: int, *, local: bool) -> Iterator[Batch]:
    """Endless: epochs of locality-centric batches, or the same triplets in random order."""
    positives = corpus.own[:N_TRAIN, None].tolist()
    generator = np.random.default_rng(seed)
    while True:
        seed += 1000
        epoch = list(
            locality_centric_batches(
                ranking, positives, batch_size=BATCH, n_documents=N_DOCUMENTS, seed=seed
            )
        )
        if not local:
            order = generator.permutation(N_TRAIN)
            whole = [np.concatenate(part)[order] for part in zip(*epoch, strict=True)]
            epoch = [
                (whole[0][s : s + BATCH], whole[1][s : s + BATCH], whole[2][s : s + BATCH])
                for s in range(0, N_TRAIN, BATCH)
            ]
        yield from epoch


def train(
    corpus: Corpus, batches: Iterator[Batch], encoder: Encoder, lr: float,
    quantizer: ContrastiveProductQuantizer | None = None,
) -> None:  # fmt: skip
    """N_STEPS of equation (3), or of its dense term alone."""
    weights = [*encoder.parameters(), *(quantizer.parameters() if quantizer else ())]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, N_STEPS)
    for _ in range(N_STEPS):
        queries, own, negatives = next(batches)
        rows = np.concatenate([own, negatives.ravel()])
        q = encoder.query(corpus.queries[queries])
        d = encoder.document(corpus.documents[rows])
        if quantizer is None:
            known = torch.from_numpy(rows[None, len(own) :] == own[:, None])
            scores = q @ d.T
            scores[:, len(own) :].masked_fill_(known, -1e4)
            loss = nn.functional.cross_entropy(scores, torch.arange(len(own)))
        else:
            same = torch.from_numpy(rows[None, :] == own[:, None])
            loss = quantizer.loss(q, d, known=same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def embed(corpus: Corpus, encoder: Encoder, queries: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Queries (B, DIM) and documents (N, DIM)."""
    return encoder.query(queries).numpy(), encoder.document(corpus.documents).numpy()


def by_codes(
    corpus: Corpus, encoder: Encoder, quantizer: ContrastiveProductQuantizer, queries: Tensor,
    k: int = TOP,
) -> np.ndarray:  # fmt: skip
    """(B, k) documents in the order of the codes' scores alone, exactly."""
    q, d = embed(corpus, encoder, queries)
    with torch.no_grad():
        codes = quantizer.codes(torch.from_numpy(d)).long()
        decoded = quantizer.codebook[torch.arange(quantizer.n_parts), codes].flatten(1)
        scores = quantizer.rotate(torch.from_numpy(q)) @ decoded.T
        return scores.topk(k, dim=1).indices.numpy()


def recall(found: np.ndarray, own: np.ndarray) -> float:
    """Share of queries whose own document is among those found."""
    return float((found == own[:, None]).any(axis=1).mean())


Trained = tuple[Encoder, ContrastiveProductQuantizer]


def tuned(corpus: Corpus, make: Callable[[float], Trained]) -> Trained:
    """The best of three learning rates by validation recall of the codes."""
    queries, own = corpus.part(N_TRAIN, N_VALIDATION)
    every = [make(lr) for lr in LEARNING_RATES]
    return max(every, key=lambda one: recall(by_codes(corpus, *one, queries), own))


def first_stage(corpus: Corpus, seed: int, size: int, base: Encoder, arm: str) -> Trained:
    """ "bidr", "opq" or "cold_start" from the encoder trained before."""

    def make(lr: float) -> Trained:
        encoder = Encoder(seed)
        encoder.load_state_dict(base.state_dict())
        batches = random_batches(corpus, seed + 1)
        if arm == "opq":
            train(corpus, batches, encoder, lr)
        documents = torch.from_numpy(embed(corpus, encoder, corpus.queries[:1])[1])
        quantizer = (
            ContrastiveProductQuantizer(
                DIM, n_parts=size, generator=torch.Generator().manual_seed(seed)
            )
            if arm == "cold_start"
            else opq(documents, size, seed)
        )
        if arm != "opq":
            train(corpus, batches, encoder, lr, quantizer)
        return encoder, quantizer

    return tuned(corpus, make)


def second_stage(corpus: Corpus, seed: int, coarse: Trained, arm: str) -> float:
    """Test recall after verification by a dense encoder trained on the arm's batches."""
    ranking = by_codes(corpus, *coarse, corpus.queries[:N_TRAIN], k=400)
    coarse_q, coarse_d = embed(corpus, coarse[0], corpus.queries)
    scores = []
    for lr in LEARNING_RATES:
        encoder = Encoder(seed + 7)
        if arm == "random_negatives":
            batches = random_batches(corpus, seed + 2)
        else:
            batches = hard_batches(corpus, ranking, seed + 2, local=arm == "bidr")
        train(corpus, batches, encoder, lr)
        q, d = embed(corpus, encoder, corpus.queries)
        index = BiGranularIndex(
            DIM, quantizer=coarse[1], n_verified=N_CANDIDATES, code_weight=CODE_WEIGHT
        ).add(d, code_vectors=coarse_d)
        ids, _ = index.search(q[N_TRAIN:], TOP, code_queries=coarse_q[N_TRAIN:])
        own = corpus.own[N_TRAIN:]
        scores.append([recall(ids[:N_VALIDATION], own[:N_VALIDATION]),
                       recall(ids[N_VALIDATION:], own[N_VALIDATION:])])  # fmt: skip
    return max(scores, key=lambda pair: pair[0])[1]


def measure(seed: int) -> list[Pair]:
    """One seed's pairs; the first: recall by codes of 8 bytes, against OPQ's."""
    seed += FIRST_DRAW
    corpus, base = topic_queries(seed), Encoder(seed)
    train(corpus, random_batches(corpus, seed), base, LEARNING_RATES[2])
    queries, own = corpus.part(N_TRAIN + N_VALIDATION, N_TEST)
    pairs: list[Pair] = []

    def note(ours: float, other: float, name: str, setting: str, spent: list[float]) -> None:
        pairs.append(
            Pair(metric="recall_at_10", ours=ours, baseline=other, baseline_name=name,
                 data="topic_queries", setting=setting, ours_s=spent[0], baseline_s=spent[1])
        )  # fmt: skip

    def timed(work: Callable[[], Trained | float]) -> tuple[Trained | float, float]:
        start = time.perf_counter()
        return work(), time.perf_counter() - start

    coarse: dict[int, Trained] = {}
    for size in SIZES:
        got, times = {}, {}
        for arm in ("bidr", "opq", "cold_start") if size == SIZES[0] else ("bidr", "opq"):
            trained, times[arm] = timed(
                lambda arm=arm, size=size: first_stage(corpus, seed, size, base, arm)
            )
            got[arm] = recall(by_codes(corpus, *trained, queries), own)
            if arm == "bidr":
                coarse[size] = trained
        for arm in list(got)[1:]:
            note(got["bidr"], got[arm], arm, f"{size} bytes", [times["bidr"], times[arm]])
    arms = ("bidr", "hard_negatives", "random_negatives")
    checked = {
        arm: timed(lambda arm=arm: second_stage(corpus, seed, coarse[SIZES[0]], arm))
        for arm in arms
    }
    for arm in arms[1:]:
        spent = [checked["bidr"][1], checked[arm][1]]
        note(checked["bidr"][0], checked[arm][0], arm, "after verification", spent)
    return pairs
