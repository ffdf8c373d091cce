"""RepCONC on two towers over latent topics, with 4 codes of 6 bits a document.

A document is a point z of 200 topics in 32 latent dimensions; its features are a random linear
map of z with noise, a query's are another map of another noisy look at the same z. Both towers
are linear to 64 dimensions. A seed draws maps, 6,000 documents, 6,000 training queries, 1,000
for validation and 1,000 for the report; the towers are warmed up by in-batch cross-entropy on
continuous vectors, and OPQ on their documents starts every arm from one state.

Arms, each with the same number of steps and three learning rates tried on the validation queries:
- ours: constrained clustering, then queries and centroids alone;
- nearest_codes: the same training, each document always at its nearest centroids;
- fixed_codes: the OPQ codes are kept, queries and centroids are trained (JPQ);
- opq: the towers trained on with continuous vectors for the same steps, OPQ afterwards;
- pq: as opq, without the rotation.
Documents are searched by their codes alone. The last pair is the bits a code byte carries.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.embeddings import ConstrainedPQ, RepCONCTrainer, ivf_pq_search
from etude.tasks.base import Pair

__all__ = ["measure"]

DIM, LATENT, N_TOPICS, N_PARTS, N_CODES = 64, 32, 200, 4, 64
N_DOCUMENTS, N_HELD = 6000, 1000
WARM_UP, STAGE_1, STAGE_2, BATCH = 150, 50, 30, 512
RATES = (1e-3, 3e-4, 3e-3)
TEMPERATURE = 0.05


@dataclass
class Towers:
    """What every arm starts from: the data of a seed and the towers after the warm-up."""

    documents: Tensor
    queries: Tensor
    wanted: Tensor
    held: list[tuple[Tensor, Tensor]]  # validation, test: queries and the rows they want
    query_tower: nn.Module
    document_tower: nn.Module


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is the constraint against nearest codes."""
    towers = _towers(seed)
    recall, spent, bits = {}, {}, {}
    for name in ("ours", "nearest_codes", "fixed_codes", "opq", "pq"):
        start, best = time.perf_counter(), (-1.0, 0.0, 0.0)
        for lr in RATES:
            quantizer, query_tower, codes = _train(name, copy.deepcopy(towers), lr, seed)
            on_held, on_test = (_recall(quantizer, query_tower, codes, *h) for h in towers.held)
            if on_held > best[0]:
                best = (on_held, on_test, _bits(codes))
        _, recall[name], bits[name] = best
        spent[name] = time.perf_counter() - start

    def pair(metric: str, found: dict[str, float], other: str) -> Pair:
        return Pair(
            metric=metric, ours=found["ours"], baseline=found[other], baseline_name=other,
            data="two_towers", setting=f"{N_PARTS} parts of {N_CODES} codes",
            ours_s=spent["ours"], baseline_s=spent[other],
        )  # fmt: skip

    others = ("nearest_codes", "fixed_codes", "opq", "pq")
    return [
        *(pair("recall_at_10", recall, other) for other in others),
        pair("code_entropy", bits, "nearest_codes"),
    ]


def _train(
    name: str, towers: Towers, lr: float, seed: int
) -> tuple[ConstrainedPQ, nn.Module, Tensor]:
    quantizer = ConstrainedPQ(DIM, n_parts=N_PARTS, n_codes=N_CODES)
    n_steps = STAGE_1 + STAGE_2
    if name in ("opq", "pq"):
        _warm(towers, n_steps, lr, seed + 1)
    with torch.no_grad():
        vectors = towers.document_tower(towers.documents)
    quantizer.initialize(vectors, n_rounds=0 if name == "pq" else 15, seed=seed)
    trainer = RepCONCTrainer(
        quantizer, towers.query_tower, towers.document_tower, lr=lr, centroid_lr=lr,
        temperature=TEMPERATURE, balanced=name == "ours", batch_size=BATCH, seed=seed,
    )  # fmt: skip
    data = (towers.queries, towers.documents, towers.wanted)
    if name in ("ours", "nearest_codes"):
        trainer.fit(*data, n_steps=STAGE_1)
        return quantizer, towers.query_tower, trainer.fit_queries(*data, n_steps=STAGE_2)
    if name == "fixed_codes":
        return quantizer, towers.query_tower, trainer.fit_queries(*data, n_steps=n_steps)
    return quantizer, towers.query_tower, quantizer.assign(quantizer.rotate(vectors))


def _towers(seed: int) -> Towers:
    generator = torch.Generator().manual_seed(2_110_000 + seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    topics = normal(N_TOPICS, LATENT)
    topic = torch.randint(N_TOPICS, (N_DOCUMENTS,), generator=generator)
    z = topics[topic] + 0.5 * normal(N_DOCUMENTS, LATENT)
    to_document, to_query = normal(LATENT, DIM), normal(LATENT, DIM)

    def ask(wanted: Tensor) -> Tensor:
        seen = z[wanted] + 0.3 * normal(len(wanted), LATENT)
        return seen @ to_query / LATENT**0.5 + 0.1 * normal(len(wanted), DIM)

    documents = z @ to_document / LATENT**0.5 + 0.1 * normal(N_DOCUMENTS, DIM)
    wanted = torch.arange(N_DOCUMENTS)
    chosen = torch.randperm(N_DOCUMENTS, generator=generator)[: 2 * N_HELD]
    held = [(ask(rows), rows) for rows in chosen.split(N_HELD)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tower = [nn.Sequential(nn.Linear(DIM, DIM), Unit()) for _ in range(2)]
    towers = Towers(documents, ask(wanted), wanted, held, tower[0], tower[1])
    _warm(towers, WARM_UP, 3e-3, seed)
    return towers


class Unit(nn.Module):
    """Vectors of length 1, as the dense models of such search have them."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return F.normalize(x, dim=1)


def _warm(towers: Towers, n_steps: int, lr: float, seed: int) -> None:
    """In-batch cross-entropy on continuous vectors."""
    modules = (towers.query_tower, towers.document_tower)
    optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        rows = torch.randperm(len(towers.queries), generator=generator)[:BATCH]
        scores = (
            towers.query_tower(towers.queries[rows])
            @ towers.document_tower(towers.documents[towers.wanted[rows]]).T
        )
        loss = F.cross_entropy(scores / TEMPERATURE, torch.arange(len(rows)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _recall(
    quantizer: ConstrainedPQ, tower: nn.Module, codes: Tensor, queries: Tensor, wanted: Tensor
) -> float:
    _, found = ivf_pq_search(quantizer, codes, tower(queries), k=10)
    return float((found == wanted[:, None]).any(dim=1).float().mean())


def _bits(codes: Tensor) -> float:
    counts = torch.stack([torch.bincount(part, minlength=N_CODES) for part in codes.T])
    share = counts / counts.sum(dim=1, keepdim=True)
    return float(-torch.special.xlogy(share, share).sum(dim=1).mean()) / math.log(2)
