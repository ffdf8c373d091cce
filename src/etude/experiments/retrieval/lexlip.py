"""LexLIP on generated scenes: bytes of the index, recall and speed, against dense vectors.

60 nouns, 20 adjectives and 10 words of no meaning, each noun and adjective with a fixed random
vector of 64 numbers. A scene is six patches: four objects, an adjective's and a noun's vector
with noise, and two of noise alone, shuffled. Its caption names three of the objects in pairs
"adjective noun" and has two idle words.

Both arms have encoders of one transformer layer, 64 wide, and take 120 steps on batches of 48
pairs drawn anew. LexLIP trains by its phase 1 loss; the dense dual encoder takes the mean of its
states and trains by the same contrast without FLOPS. Three settings each: LexLIP's FLOPS weight
(the paper's 0.002 leaves most of so few words above 0), the dense encoder's learning rate; by
Recall@10 for 500 other pairs, and of LexLIP's the largest weight within 0.02 of the best. The
first pair is the claim: Recall@1 of 1,000 captions among the first 1,000 of 5,000 images. Further:
Recall@10, bytes an image over all 5,000 images, lists against float32 vectors, queries a second (a
compiled sparse product against BLAS, one thread, the same sorting after it), and bytes against all
weights, the zeros too, as rows of a dense matrix.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.retrieval import InvertedIndex, LexiconEncoder
from etude.tasks.base import Pair

__all__ = ["measure", "word_scenes"]

N_NOUNS, N_ADJECTIVES, N_IDLE, DIM = 60, 20, 10, 64
N_WORDS = 3 + N_NOUNS + N_ADJECTIVES + N_IDLE
N_STEPS, BATCH, N_HELD, N_TEST, N_IMAGES = 120, 48, 500, 1000, 5000
WEIGHTS, RATES, RATE = (0.2, 1.0, 4.0), (1e-3, 3e-3, 1e-2), 3e-3


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is Recall@1, lists of words against dense vectors."""
    rng = np.random.default_rng([seed, 95])
    parts = rng.standard_normal((N_NOUNS + N_ADJECTIVES, DIM)) / np.sqrt(DIM)
    held, images = (word_scenes(rng, parts, n) for n in (N_HELD, N_IMAGES))
    start = time.perf_counter()
    lexical: list[nn.Module] = [_train(parts, seed, RATE, weight) for weight in WEIGHTS]
    middle = time.perf_counter()
    dense: list[nn.Module] = [_train(parts, seed, rate, None) for rate in RATES]
    spent = middle - start, time.perf_counter() - middle
    on_held = [_recall(*_encode(m, held), 10) for m in lexical]
    good = [i for i, value in enumerate(on_held) if value >= max(on_held) - 0.02]
    words = _encode(lexical[good[-1]], images)
    vectors = _encode(max(dense, key=lambda m: _recall(*_encode(m, held), 10)), images)

    index = InvertedIndex().build(words[1])
    queries = words[0][:200], vectors[0][:200]
    begin = time.perf_counter()
    index.search(queries[0])
    turn = time.perf_counter()
    np.argsort(-(queries[1] @ vectors[1].T), axis=1, kind="stable")
    seconds = turn - begin, time.perf_counter() - turn

    def pair(metric: str, ours: float, baseline: float, name: str = "dense_dual_encoder") -> Pair:
        return Pair(
            metric=metric, ours=ours, baseline=baseline, baseline_name=name, data="word_scenes",
            setting="text to image", ours_s=spent[0], baseline_s=spent[1],
        )  # fmt: skip

    small = [tuple(x[:N_TEST] for x in side) for side in (words, vectors)]
    per_image = index.n_bytes / N_IMAGES
    return [
        pair("recall_at_1", *(_recall(*side, 1) for side in small)),
        pair("recall_at_10", *(_recall(*side, 10) for side in small)),
        pair("bytes", per_image, vectors[1].nbytes / N_IMAGES),
        pair("queries_per_s", *(200 / s for s in seconds)),
        pair("bytes", per_image, words[1].nbytes / N_IMAGES, "dense_rows_of_words"),
    ]


def word_scenes(rng: np.random.Generator, parts: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
    """Captions (n, 9) of word ids and scenes (n, 6, D), float32."""
    nouns = np.argsort(rng.random((n, N_NOUNS)), axis=1)[:, :4]
    adjectives = rng.integers(0, N_ADJECTIVES, (n, 4))
    patches = np.zeros((n, 6, DIM))
    patches[:, :4] = parts[nouns] + parts[N_NOUNS + adjectives]
    patches += 0.5 * rng.standard_normal(patches.shape) / np.sqrt(DIM)
    order = np.argsort(rng.random((n, 6)), axis=1)
    patches = np.take_along_axis(patches, order[..., None], axis=1)
    told = np.stack([3 + N_NOUNS + adjectives, 3 + nouns], axis=2)[:, :3].reshape(n, 6)
    idle = N_WORDS - N_IDLE + rng.integers(0, N_IDLE, (n, 2))
    ids = np.concatenate([np.ones((n, 1), np.int64), told, idle], axis=1)
    return torch.from_numpy(ids), torch.from_numpy(patches).float()


class _Dense(nn.Module):
    """A dual encoder of the same layers, whose vectors are means of states."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(N_WORDS, DIM), nn.Embedding(16, DIM)
        self.text, self.image = (
            nn.TransformerEncoderLayer(
                DIM, 4, 4 * DIM, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(2)
        )
        nn.init.normal_(self.words.weight, 0, DIM**-0.5)
        nn.init.normal_(self.places.weight, 0, 0.02)

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.text(self.words(ids) + self.places.weight[: ids.shape[1]]).mean(1)

    def forward(self, patches: Tensor) -> Tensor:
        return self.image(patches).mean(1)

    def loss(self, ids: Tensor, patches: Tensor) -> Tensor:
        near = F.normalize(self.encode_text(ids)) @ F.normalize(self(patches)).T / 0.05
        own = torch.arange(len(ids))
        return (F.cross_entropy(near, own) + F.cross_entropy(near.T, own)) / 2


def _train(parts: np.ndarray, seed: int, lr: float, flops_weight: float | None) -> nn.Module:
    """LexLIP with a weight of FLOPS, the dense encoder without."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if flops_weight is None:
            model: nn.Module = _Dense()
        else:
            model = LexiconEncoder(
                DIM, n_words=N_WORDS, n_tokens=16, flops_weight=flops_weight,
                generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
    rng = np.random.default_rng([seed, 96])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        model.loss(*word_scenes(rng, parts, BATCH)).backward()  # type: ignore[operator]
        optimizer.step()
    return model.eval()


@torch.no_grad()
def _encode(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1 of the captions and of the scenes."""
    sides = model.encode_text(data[0]), model(data[1])  # type: ignore[operator]
    return F.normalize(sides[0]).numpy(), F.normalize(sides[1]).numpy()


def _recall(queries: np.ndarray, items: np.ndarray, k: int) -> float:
    scores = queries @ items.T
    # Equal scores go against the query: rows of zeros would find everything otherwise.
    return float(((scores >= np.diag(scores)[:, None]).sum(1) <= k).mean())
