"""CRISP on synthetic documents of a few topics among many noise tokens.

A vocabulary of 50 topics of four words each and of 150 noise words; a word is a fixed random
vector of 64 numbers, so that nothing but training tells that two words share a topic. A document
has 4 topics with 3 words each and 20 noise words, shuffled; a query has one word each of 3 of
its document's topics and 3 noise words. The encoder is a network of one hidden layer on single
words, its output of length 1. Training pairs are drawn anew at each step (48 of them, AdamW);
the reported Recall@10 is over 600 documents never seen, one query each.

All arms start from one encoder that 150 unpruned steps have trained (the paper starts from a
language model), and go on for 150 steps on the same pairs: unpruned, CRISP at 4 means a query
and 8 or 4 a document, and, trained with their selection as well, evenly spaced and last tokens.
Post-hoc clustering is the unpruned model with k-means afterwards. Each arm's learning rate is
the better of two for 200 other documents and queries, post-hoc clustering's by what it gives
clustered. The first pair is the claim. Further: post-hoc at 4 means, the two selections, and the
unpruned model, which stores 32 vectors a document.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from etude.retrieval import ClusteredMultiVector, chamfer_similarity
from etude.tasks.base import Pair

__all__ = ["measure", "topic_tokens"]

N_TOPICS, N_FORMS, N_NOISE, DIM = 50, 4, 150, 64
N_STEPS, BATCH, N_HELD, N_TEST = 150, 48, 200, 600
RATES = (3e-3, 1e-2)
ARMS = {
    "unpruned": ("none", 4, 8),
    "crisp 8": ("cluster", 4, 8),
    "crisp 4": ("cluster", 4, 4),
    "spacing": ("spacing", 4, 8),
    "tail": ("tail", 4, 8),
}


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is CRISP against clustering after training, at 4 x 8."""
    words = torch.randn(
        N_TOPICS * N_FORMS + N_NOISE, DIM, generator=torch.Generator().manual_seed(seed)
    )
    rng = np.random.default_rng([seed, 21])
    held, test = (tuple(words[x] for x in topic_tokens(rng, n)) for n in (N_HELD, N_TEST))
    models, spent = {}, {}
    first = _train(words, ARMS["unpruned"], RATES[0], seed, None)
    for name, arm in ARMS.items():
        start = time.perf_counter()
        models[name] = [_train(words, arm, lr, seed, first) for lr in RATES]
        spent[name] = time.perf_counter() - start

    def chosen(trained: str, tested: str) -> float:
        selection, query_budget, document_budget = ARMS[tested]
        arms = [
            ClusteredMultiVector(
                network=model.network, selection=selection, query_budget=query_budget,
                document_budget=document_budget,
            )
            for model in models[trained]
        ]  # fmt: skip
        return _recall(max(arms, key=lambda arm: _recall(arm, held)), test)

    found = {name: chosen(name, name) for name in ARMS}
    pairs = [
        ("crisp 8", "post_hoc_clustering", chosen("unpruned", "crisp 8"), "4 x 8"),
        ("crisp 4", "post_hoc_clustering", chosen("unpruned", "crisp 4"), "4 x 4"),
        ("crisp 8", "even_spacing", found["spacing"], "4 x 8"),
        ("crisp 8", "tail", found["tail"], "4 x 8"),
        ("crisp 8", "unpruned", found["unpruned"], "4 x 8 against 6 x 32"),
    ]
    arm_of = {"even_spacing": "spacing", "tail": "tail"}
    return [
        Pair(
            metric="recall_at_10", ours=found[ours], baseline=value, baseline_name=other,
            data="topic_tokens", setting=setting, ours_s=spent[ours],
            baseline_s=spent[arm_of.get(other, "unpruned")],
        )
        for ours, other, value, setting in pairs
    ]  # fmt: skip


def topic_tokens(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Word ids of n queries (n, 6) and of their documents (n, 32)."""
    topics = np.argsort(rng.random((n, N_TOPICS)), axis=1)[:, :4]
    told = np.repeat(topics, 3, axis=1)
    noise = N_TOPICS * N_FORMS + rng.integers(0, N_NOISE, (n, 23))
    spoken = told * N_FORMS + rng.integers(0, N_FORMS, told.shape)
    documents = rng.permuted(np.concatenate([spoken, noise[:, :20]], axis=1), axis=1)
    asked = topics[:, :3] * N_FORMS + rng.integers(0, N_FORMS, (n, 3))
    queries = rng.permuted(np.concatenate([asked, noise[:, 20:]], axis=1), axis=1)
    return torch.from_numpy(queries), torch.from_numpy(documents)


class _Unit(nn.Module):
    """Rows of length 1."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


def _train(
    words: Tensor,
    arm: tuple[str, int, int],
    lr: float,
    seed: int,
    first: ClusteredMultiVector | None,
) -> ClusteredMultiVector:
    """A new model after its steps, from random weights or from those of another model."""
    selection, query_budget, document_budget = arm
    generator = torch.Generator().manual_seed(seed)
    network = nn.Sequential(nn.Linear(DIM, 128), nn.ReLU(), nn.Linear(128, 32), _Unit())
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
    model = ClusteredMultiVector(
        network=network, selection=selection, query_budget=query_budget,
        document_budget=document_budget,
    )  # fmt: skip
    if first is not None:
        model.load_state_dict(first.state_dict())
    rng = np.random.default_rng([seed, 22, first is None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(N_STEPS):
        queries, documents = topic_tokens(rng, BATCH)
        optimizer.zero_grad()
        model.loss(words[queries], words[documents]).backward()
        optimizer.step()
    return model


@torch.no_grad()
def _recall(model: ClusteredMultiVector, pairs: tuple[Tensor, ...]) -> float:
    vectors, mask = model.encode_documents(pairs[1])
    parts = [model.encode_queries(part) for part in pairs[0].split(100)]
    scores = torch.cat(
        [chamfer_similarity(q, vectors, query_mask=m, document_mask=mask) for q, m in parts]
    )
    # Equal scores go against the query, so that equal vectors find nothing.
    as_good = (scores >= scores.diagonal()[:, None]).sum(1)
    return float((as_good <= 10).float().mean())
