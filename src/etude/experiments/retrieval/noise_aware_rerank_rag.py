"""RagVL on drawn entities: finding the image that a question is about, and answering from it.

Data (``_entities``): questions about entities that four traits identify, images, and captions of
which four of ten are wrong. Entities are divided into training, validation and test; the bank of
each part holds the images asked for and as many that differ from one of those in one trait.
Everything is drawn anew for each seed.

Index: two towers, for texts and for images, aligned by contrast on all training images and their
captions, right or wrong, as a pretrained model is; it has not seen a question. "tuned_index" is
trained on questions and true images instead, and its image tower sees the caption, too.
Rerankers see the 20 retrieved: ours is trained with the index's mistakes as No,
"random_negatives" with any images as No. Answering networks see the best two, all from the same
initial weights with equal steps: plain (true images only), with wrong images beside the true ones
("data_noise"), with the weights by diffused images ("token_noise"), with both. Every training
chooses between two learning rates by validation.

The first pair is the claim: Recall@1 after reranking, and of the tuned index, which is trained on
as many labeled questions as the reranker. Then against the index alone, and against random
negatives; F1 of what is kept
with and without the threshold; exact match of the two words, ours of reranking, threshold and
both noises, against each thing left out.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from etude.experiments.retrieval._entities import (
    ATTRIBUTES,
    CHOICES,
    TRAITS,
    VALUES,
    WIDTH,
    Part,
    draw,
)
from etude.retrieval import (
    RerankHead,
    ToyMultimodalRAG,
    adaptive_threshold,
    diffusion_noise,
    noise_injected_loss,
)
from etude.tasks.base import Pair

__all__ = ["measure"]

N_STEPS, BATCH, K, RATES = 400, 128, 20, (2e-3, 5e-3)


class Index(nn.Module):
    """Both towers; a tuned one reads captions beside images."""

    def __init__(self, tuned: bool) -> None:
        super().__init__()
        self.tuned, self.ask, self.show = tuned, _layers(WIDTH), _layers(2 * WIDTH)

    def texts(self, x: Tensor) -> Tensor:
        """Unit vectors of captions, or of questions, of which only the traits are read."""
        traits = torch.arange(WIDTH) < TRAITS * VALUES
        return normalize(self.ask(x * traits))

    def pictures(self, items: Tensor) -> Tensor:
        """Unit vectors of captioned images."""
        read = torch.tensor([float(self.tuned), 1.0])[:, None]
        return normalize(self.show((items * read).flatten(1)))

    @torch.no_grad()
    def vectors(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Of questions and bank."""
        return self.texts(part.questions).numpy(), self.pictures(part.items).numpy()


class Answerer(nn.Module):
    """Reads question, caption and image in two places, weighs the places, says two words."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Sequential(nn.Linear(3 * WIDTH, 128), nn.ReLU(), nn.Linear(128, 128))
        self.weigh, self.say = nn.Linear(128, 1), nn.Linear(128, 2 * (ATTRIBUTES + CHOICES))
        self.alone = nn.Parameter(torch.zeros(128))

    def forward(self, questions: Tensor, items: Tensor, mask: Tensor) -> Tensor:
        """(B, D), (B, 2, 2, D) and (B, 2) bool -> (B, 2, 8) logits; without places by itself."""
        asked = questions[:, None].expand(-1, items.shape[1], -1)
        read = self.read(torch.cat([asked, items.flatten(2)], dim=2)).relu()
        weight = self.weigh(read)[..., 0].masked_fill(~mask, -1e9).softmax(dim=1) * mask
        pooled = (weight[..., None] * read).sum(dim=1)
        pooled = torch.where(mask.any(dim=1, keepdim=True), pooled, self.alone)
        said: Tensor = self.say(pooled)
        return said.reshape(-1, 2, ATTRIBUTES + CHOICES)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is Recall@1 after reranking against the tuned index's."""
    train, held, test = draw(seed)
    torch.manual_seed(seed)  # initial weights; batches have their own generator
    start = time.perf_counter()
    towers, tuned = (
        _best(
            Index(known), lambda net, rows, gen: _contrast(net, train, rows, gen),
            lambda net: _recall(net, held), train, seed,
        ) for known in (False, True)
    )  # fmt: skip
    index_s = (time.perf_counter() - start) / 2
    mistakes = _mistakes(train, towers)
    head = RerankHead(WIDTH, hidden_dim=128)
    start = time.perf_counter()
    rerankers = {
        name: _best(
            head,
            lambda net, rows, gen, wrong=wrong: _yes_or_no(net, train, rows, wrong, gen),
            lambda net: _recall(towers, held, net), train, seed,
        )
        for name, wrong in (("ours", mistakes), ("random_negatives", None))
    }  # fmt: skip
    rerank_s = (time.perf_counter() - start) / 2
    seen = ToyMultimodalRAG(rerankers["ours"].score).select(*towers.vectors(held), held.questions,
                                                            held.items)  # fmt: skip
    threshold = adaptive_threshold(seen.scores[:, 0], seen.ids[:, 0] == np.arange(len(seen.ids)))

    def arm(name: str | None, cut: float) -> ToyMultimodalRAG:
        score = None if name is None else rerankers[name].score
        return ToyMultimodalRAG(score, n_retrieved=K, threshold=cut)

    full = arm("ours", threshold)
    writer, writers = Answerer(), {}
    for noise in ("none", "data", "token", "both"):
        writers[noise] = _best(
            writer,
            lambda net, rows, gen, noise=noise: _write(net, train, rows, mistakes, noise, gen),
            lambda net: _match(net, held, towers, full), train, seed,
        )  # fmt: skip
    match = {noise: _match(net, test, towers, full) for noise, net in writers.items()}
    without = {
        "without_rerank": _match(writers["both"], test, towers, arm(None, 0.0)),
        "without_threshold": _match(writers["both"], test, towers, arm("ours", 0.0)),
        "plain_pipeline": _match(writers["none"], test, towers, arm(None, 0.0)),
        "without_noise": match["none"], "data_noise": match["data"], "token_noise": match["token"],
    }  # fmt: skip
    recall = _recall(towers, test, rerankers["ours"])

    def pair(metric: str, ours: float, baseline: float, name: str) -> Pair:
        return Pair(
            metric=metric, ours=ours, baseline=baseline, baseline_name=name,
            data="captioned_entities", ours_s=rerank_s, baseline_s=index_s,
        )  # fmt: skip

    return [
        pair("recall_at_1", recall, _recall(tuned, test), "tuned_index"),
        pair("recall_at_1", recall, _recall(towers, test), "dual_encoder"),
        pair("recall_at_1", recall, _recall(towers, test, rerankers["random_negatives"]),
             "random_negatives"),
        pair("micro_f1", _f1(test, towers, full), _f1(test, towers, arm("ours", 0.0)),
             "without_threshold"),
        *(pair("accuracy", match["both"], value, name) for name, value in without.items()),
    ]  # fmt: skip


def _layers(n_in: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 128), nn.ReLU(), nn.Linear(128, 64))


def _best(
    network: nn.Module, loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    quality: Callable[[nn.Module], float], train: Part, seed: int,
) -> nn.Module:  # fmt: skip
    """The better of two learning rates by `quality`; each starts from `network`."""
    found = []
    for lr in RATES:
        net, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
        for _ in range(N_STEPS):
            rows = torch.randint(len(train.questions), (BATCH,), generator=generator)
            optimizer.zero_grad()
            loss(net, rows, generator).backward()
            optimizer.step()
        found.append((quality(net), net))
    return max(found, key=lambda each: each[0])[1]


def _contrast(index: Index, part: Part, rows: Tensor, generator: torch.Generator) -> Tensor:
    if not index.tuned:
        rows = torch.randint(len(part.items), rows.shape, generator=generator)
    told = part.questions[rows] if index.tuned else part.items[rows, 0]
    logits = 15 * index.texts(told) @ index.pictures(part.items[rows]).T
    told = told[:, : TRAITS * VALUES]  # other images of the same words are no mistakes
    same = (told @ told.T >= TRAITS) & ~torch.eye(len(rows), dtype=torch.bool)
    own, logits = torch.arange(len(rows)), logits.masked_fill(same, -1e9)
    return cross_entropy(logits, own) + cross_entropy(logits.T, own)


def _mistakes(part: Part, towers: Index) -> Tensor:
    """(Q, K - 2) what the index finds for each question beside images of its own kind."""
    queries, vectors = towers.vectors(part)
    n, traits = len(queries), TRAITS * VALUES
    kind = part.questions[:, :traits].numpy()
    scores = queries @ vectors.T
    scores[:, :n][kind @ kind.T >= TRAITS] = -np.inf
    return torch.from_numpy(np.argsort(-scores, axis=1, kind="stable")[:, : K - 2].copy())


def _wrong(rows: Tensor, mistakes: Tensor, generator: torch.Generator) -> Tensor:
    pick = torch.randint(mistakes.shape[1], (len(rows),), generator=generator)
    return mistakes[rows, pick]


def _yes_or_no(
    net: nn.Module, part: Part, rows: Tensor, mistakes: Tensor | None, generator: torch.Generator
) -> Tensor:
    if mistakes is None:
        wrong = torch.randint(len(part.items), rows.shape, generator=generator)
    else:
        wrong = _wrong(rows, mistakes, generator)
    asked = part.questions[rows].repeat(2, 1)[:, None]
    tokens = torch.cat([asked, part.items[torch.cat([rows, wrong])]], dim=1)
    return net.loss(tokens, torch.arange(2 * len(rows)) < len(rows))


def _write(
    net: nn.Module, part: Part, rows: Tensor, mistakes: Tensor, noise: str,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    second = torch.full_like(rows, 0)
    mask = torch.tensor([True, False]).repeat(len(rows), 1)
    if noise in ("data", "both"):
        second = _wrong(rows, mistakes, generator)
        mask[:, 1] = torch.rand(len(rows), generator=generator) < 0.5
    places = torch.stack([rows, second], dim=1)
    swapped = torch.rand(len(rows), generator=generator) < 0.5
    places[swapped], mask[swapped] = places[swapped].flip(1), mask[swapped].flip(1)
    asked, items, target = part.questions[rows], part.items[places], part.answers[rows]
    logits = net(asked, items, mask)
    if noise in ("none", "data"):
        return cross_entropy(logits.flatten(0, 1), target.flatten())
    blurred = items.clone()
    blurred[:, :, 1] = diffusion_noise(items[:, :, 1], generator=generator)
    with torch.no_grad():
        unsure = net(asked, blurred, mask)
    return noise_injected_loss(logits, unsure, target)


def _recall(towers: Index, part: Part, reranker: nn.Module | None = None) -> float:
    rag = ToyMultimodalRAG(None if reranker is None else reranker.score, n_retrieved=K)
    ids = rag.select(*towers.vectors(part), part.questions, part.items).ids
    return float((ids[:, 0] == np.arange(len(ids))).mean())


def _f1(part: Part, towers: Index, rag: ToyMultimodalRAG) -> float:
    """Of all images kept and the true ones."""
    found = rag.select(*towers.vectors(part), part.questions, part.items)
    true = found.kept & (found.ids == np.arange(len(found.ids))[:, None])
    return float(2 * true.sum() / (found.kept.sum() + len(found.ids)))


@torch.no_grad()
def _match(net: nn.Module, part: Part, towers: Index, rag: ToyMultimodalRAG) -> float:
    """Share of questions with both words right."""
    found = rag.select(*towers.vectors(part), part.questions, part.items)
    ids, mask = (
        torch.from_numpy(found.ids[:, :2].copy()),
        torch.from_numpy(found.kept[:, :2].copy()),
    )
    said = net(part.questions, part.items[ids], mask).argmax(dim=2)
    return float((said == part.answers).all(dim=1).double().mean())
