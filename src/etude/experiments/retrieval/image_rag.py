"""ImageRAG on mosaics of garments: which way is the one rare garment turned?

Data: Fashion-MNIST. A scene is 30 x 30 garments (840 x 840 pixels) of up to three background
classes and one garment of another kind (tops, trousers, shoes, bags), each turned by 0 to 3
quarters at random. The question names the rare class by a phrase of its own ("winter coat") and
asks for its quarter turns. A seed draws
images, classes and scenes: 60 to choose settings on, 150 to report; scenes of either part, the
examples of the database and the training images share no image.

Encoder: a small image network and a linear map of sentence vectors (all-MiniLM-L6-v2), aligned by
softmax in both directions on 12,000 turned garments and the names and phrases of their classes;
the words of three of the ten classes are unknown to it, as are their images. The database holds
20 examples of each of the ten classes. The reader, one for all arms with cues, tells a garment's
quarter turns; the cues' answers are weighted by their confidence. Without cues the shrunk scene
is asked.

Baseline "resized_scene": the scene shrunk to 60 x 60 pixels, no fewer than all cues have. Two
networks of the reader's size are trained on garments so shrunk, one for the class (all ten, by
name), one for the turns; the answer weights all places by a softmax of the class's log-odds, its
sharpness chosen from six values. "resized_scene_7" has 7 x 7 pixels a garment, twelve times as
many. Ours chooses among six thresholds and prototypes; "cosine_threshold" the path by the best
cosine, from six bounds; "fast_path" never leaves it. Further pairs: against it, with known and
with unknown words; and how often the rare garment is among the cues, of which there are few.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from etude.experiments.retrieval._mosaics import (
    NAMES,
    SIZE,
    Question,
    garments,
    question,
    turned,
    words,
)
from etude.retrieval import Cues, ImageRAG
from etude.tasks.base import Pair

__all__ = ["measure"]

N_HELD, N_TEST, N_UNKNOWN, N_EXAMPLES = 60, 150, 3, 20
SETTINGS = tuple((t, reduce) for t in (0.3, 0.5, 0.7) for reduce in ("mean", "rerank"))
BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHARPNESS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
Ask = Callable[[np.ndarray, np.ndarray, np.ndarray], Cues]


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is ImageRAG against the scene shrunk to the cues' pixels."""
    images, labels = garments()
    rng = np.random.default_rng([seed, 26])
    order = rng.permutation(len(images))
    train, example, held, test = np.split(order, [12_000, 15_000, 18_000])
    unknown = rng.choice(len(NAMES), N_UNKNOWN, replace=False)
    torch.manual_seed(seed)  # initial weights; batches have their own generator
    x, y, turns = turned(images[train], labels[train], rng)
    spoken, sentences = words()
    known = ~np.isin(y, unknown)
    start = time.perf_counter()
    encoder, texts, scale = _align(x[known], y[known], spoken, seed)
    reader = _classify(x, turns, 4, seed)
    phrases = texts(torch.from_numpy(spoken[:, 1])).detach().numpy()
    shown = np.concatenate([example[labels[example] == n][:N_EXAMPLES] for n in range(len(NAMES))])
    pictures = turned(images[shown], labels[shown], rng)[0]
    database = _embed(encoder, pictures), labels[shown], sentences[:, 0]
    parts = [
        [question(images[rows], labels[rows], rng) for _ in range(n)]
        for rows, n in ((held, N_HELD), (test, N_TEST))
    ]
    ours_s = time.perf_counter() - start

    start = time.perf_counter()
    shrunk = {pixels: _shrunk(x, y, turns, pixels, parts, seed) for pixels in (2, 7)}
    shrunk_s = (time.perf_counter() - start) / 2

    start = time.perf_counter()
    views = [
        [
            (q, _embed(encoder, q.patches), _log_probs(reader, q.patches), n)
            for q, n in zip(part, blind, strict=True)
        ]
        for part, blind in zip(parts, shrunk[2], strict=True)
    ]
    wanted = [np.array([q.turns for q in part]) for part in parts]
    answers, recall = {}, {}
    for name in ("image_rag", "cosine_threshold", "fast_path"):
        tried = []
        for ask in _arm(name, scale, database):
            found = [
                [(q, ask(z, phrases[q.target], sentences[q.target]), told, n)
                 for q, z, told, n in part] for part in views
            ]  # fmt: skip
            read = [np.array([_read(*each[1:]) for each in part]) for part in found]
            inside = np.array([q.place in cues.patches for q, cues, _, _ in found[1]])
            tried.append((float((read[0] == wanted[0]).mean()), read[1], inside))
        _, answers[name], recall[name] = max(tried, key=lambda each: each[0])
    ours_s += time.perf_counter() - start
    answers |= {"resized_scene": shrunk[2][1], "resized_scene_7": shrunk[7][1]}

    asked = np.array([q.target for q in parts[1]])
    strange = np.isin(asked, unknown)
    right = {name: found == wanted[1] for name, found in answers.items()}

    def pair(metric: str, found: dict[str, np.ndarray], other: str, where: str = "") -> Pair:
        rows = strange if where == "unknown words" else ~strange if where else strange >= 0
        ours, theirs = (float(found[name][rows].mean()) for name in ("image_rag", other))
        return Pair(
            metric=metric, ours=ours, baseline=theirs, baseline_name=other,
            data="fashion_mnist_mosaics", setting=where, ours_s=ours_s,
            baseline_s=shrunk_s if other.startswith("resized") else ours_s,
        )  # fmt: skip

    others = ("resized_scene", "resized_scene_7", "cosine_threshold", "fast_path")
    pairs = [pair("accuracy", right, other) for other in others]
    return pairs + [
        pair(*what, "fast_path", where)
        for what in (("accuracy", right), ("recall_at_10", recall))
        for where in ("known words", "unknown words")
    ]


def _arm(name: str, scale: float, database: Arrays) -> list[Ask]:
    """For each setting of the arm: patches, phrase and sentences to cues."""

    def fitted(threshold: float, reduce: str = "mean") -> ImageRAG:
        knobs = {"scale": scale, "threshold": threshold, "reduce": reduce}
        return ImageRAG(**knobs, n_neighbors=1).fit(*database)

    def asking(rag: ImageRAG) -> Ask:
        return lambda patches, phrase, sentences: rag.query(patches, phrase[None], sentences[1:])

    def choosing(bound: float) -> Ask:
        fast, slow = asking(fitted(0.0)), asking(fitted(1.0))

        def ask(patches: np.ndarray, phrase: np.ndarray, sentences: np.ndarray) -> Cues:
            cosines = patches @ phrase / np.linalg.norm(patches, axis=1) / np.linalg.norm(phrase)
            return (fast if cosines.max() > bound else slow)(patches, phrase, sentences)

        return ask

    if name == "fast_path":
        return [asking(fitted(0.0))]
    if name == "cosine_threshold":
        return [choosing(bound) for bound in BOUNDS]
    return [asking(fitted(*setting)) for setting in SETTINGS]


def _read(cues: Cues, log_probs: np.ndarray, other: int) -> int:
    """The turns that the cues say together, or else the shrunk scene's answer."""
    if not len(cues.patches):
        return other
    return int((cues.confidence @ np.exp(log_probs[cues.patches])).argmax())


def _shrunk(
    x: Tensor, y: np.ndarray, turns: np.ndarray, pixels: int, parts: list[list[Question]], seed: int
) -> list[np.ndarray]:
    """Answers for both parts from garments of pixels x pixels, sharpness by the first part."""
    small = _smaller(x, pixels)
    what, way = _classify(small, y, len(NAMES), seed), _classify(small, turns, 4, seed)
    found = []
    for part in parts:
        answers = np.empty((len(SHARPNESS), len(part)), dtype=np.int64)
        for column, q in enumerate(part):
            tiny = _smaller(q.patches, pixels)
            log_class = _log_probs(what, tiny)[:, q.target]
            odds = log_class - np.log1p(-np.exp(np.minimum(log_class, -1e-6)))
            probs = np.exp(_log_probs(way, tiny))
            for row, sharpness in enumerate(SHARPNESS):
                weight = np.exp(sharpness * (odds - odds.max()))
                answers[row, column] = (weight @ probs).argmax()
        found.append(answers)
    best = (found[0] == [q.turns for q in parts[0]]).mean(axis=1).argmax()
    return [answers[best] for answers in found]


def _smaller(x: Tensor, pixels: int) -> Tensor:
    """Means of blocks: (N, 784) -> (N, pixels ** 2)."""
    block = SIZE // pixels
    return x.reshape(-1, pixels, block, pixels, block).mean(dim=(2, 4)).flatten(1)


def _network(n_in: int, n_out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n_in, 128), nn.ReLU(), nn.Linear(128, n_out))


def _classify(x: Tensor, labels: np.ndarray, n: int, seed: int) -> nn.Module:
    network, generator = _network(x.shape[1], n), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    y = torch.from_numpy(labels)
    for _ in range(1000):
        rows = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return network


def _align(
    x: Tensor, labels: np.ndarray, words: np.ndarray, seed: int
) -> tuple[nn.Module, nn.Module, float]:
    """Image network, text map and the learned scale of the cosines."""
    images, texts = _network(x.shape[1], 64), nn.Linear(words.shape[-1], 64)
    log_scale = nn.Parameter(torch.tensor(10.0).log())
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        [*images.parameters(), *texts.parameters(), log_scale], lr=2e-3, weight_decay=1e-2
    )
    y, spoken = torch.from_numpy(labels), torch.from_numpy(words)
    for _ in range(1000):
        rows = torch.randint(len(x), (128,), generator=generator)
        said = torch.randint(2, (128,), generator=generator)  # its name or its phrase
        shown, told = normalize(images(x[rows])), normalize(texts(spoken[y[rows], said]))
        logits = log_scale.exp().clamp(max=100) * shown @ told.T
        same = (y[rows][:, None] == y[rows]).float()  # a batch has each class many times
        target = same / same.sum(dim=1, keepdim=True)
        loss = cross_entropy(logits, target) + cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return images, texts, float(log_scale.exp().clamp(max=100).detach())


@torch.no_grad()
def _embed(network: nn.Module, x: Tensor) -> np.ndarray:
    return network(x).numpy()


@torch.no_grad()
def _log_probs(network: nn.Module, x: Tensor) -> np.ndarray:
    return network(x).log_softmax(dim=1).double().numpy()
