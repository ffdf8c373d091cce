"""UCoFiA on generated videos and captions: what each level finds, and what the biases add.

One space of 32 numbers for both sides, as CLIP's, with 60 object and 12 scene vectors. A video
is 4 frames of 6 patches: all patches show its scene, and each of its 4 objects fills one patch
of one or two frames; a frame's own vector is the mean of its patches. A caption names the scene
and 3 of the objects, with two words of no meaning; its sentence vector is the mean of its words.
All vectors get noise, and text vectors one common offset (a modality gap). A third of the
videos are hubs: they have a share of the mean text vector in all patches.

300 pairs for training, 100 for choosing, 300 to report. UCoFiA and mean pooling (level one of
the same network alone) start from the same weights and take 80 steps on the same batches of 32,
each with the better of two learning rates by validation Recall@1, biases included for UCoFiA.
The first pair is the claim, text to video. The biases of test videos come from training texts,
those of test texts from training videos. Further pairs: video to text; without biases; each
level of the same trained network alone, with its biases; mean pooling with biases; biases from
the test texts themselves (transductive, not for use); and the skewness of the 5-occurrence.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from etude.retrieval import UCoFiA, hub_skewness, sinkhorn_normalize
from etude.tasks.base import Pair

__all__ = ["measure", "patch_videos"]

DIM, N_OBJECTS, N_SCENES = 32, 60, 12
N_FRAMES, N_PATCHES, N_WORDS = 4, 6, 6
N_TRAIN, N_HELD, N_TEST = 300, 100, 300
N_STEPS, BATCH, RATES = 80, 32, (1e-4, 1e-3)
Data = tuple[Tensor, Tensor, Tensor, Tensor]  # sentences, words, frames, patches


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is all three levels with biases against mean pooling."""
    rng = np.random.default_rng([seed, 190])
    data = patch_videos(rng, N_TRAIN + N_HELD + N_TEST)
    train, held, test = zip(*(x.split([N_TRAIN, N_HELD, N_TEST]) for x in data), strict=True)
    chosen, spent = {}, {}
    for name in ("ucofia", "mean_pooling"):
        start = time.perf_counter()
        models = [_train(train, lr, seed, name == "mean_pooling") for lr in RATES]
        on_held = [_recall(_arms(m, train, held)[name]) for m in models]
        chosen[name] = models[int(np.argmax(on_held))]
        spent[name] = time.perf_counter() - start
    arms = _arms(chosen["ucofia"], train, test)
    pooled = _arms(chosen["mean_pooling"], train, test)
    back = _arms(chosen["ucofia"], train, test, back=True)
    pooled_back = _arms(chosen["mean_pooling"], train, test, back=True)

    def pair(ours: Tensor, other: Tensor, name: str, setting: str, skew: bool = False) -> Pair:
        value = (lambda s: hub_skewness(s.numpy(), 5)) if skew else _recall
        return Pair(
            metric="hub_skewness" if skew else "recall_at_1", ours=value(ours),
            baseline=value(other), baseline_name=name, data="patch_videos", setting=setting,
            ours_s=spent["ucofia"], baseline_s=spent["mean_pooling"],
        )  # fmt: skip

    base = pooled["mean_pooling"]
    one, two = "text to video", "video to text"
    return [
        pair(arms["ucofia"], base, "mean_pooling", one),
        pair(back["ucofia"], pooled_back["mean_pooling"], "mean_pooling", two),
        pair(arms["ucofia"], arms["plain"], "without_biases", one),
        pair(back["ucofia"], back["plain"], "without_biases", two),
        pair(arms["ucofia"], pooled["level 0"], "mean_pooling_with_biases", one),
        *(
            pair(arms["ucofia"], arms[f"level {i}"], f"{name}_level", one)
            for i, name in enumerate(("video", "frame", "patch"))
        ),
        pair(arms["ucofia"], arms["transductive"], "biases_of_test_texts", one),
        pair(arms["ucofia"], arms["plain"], "without_biases", "5-occurrence", skew=True),
        pair(arms["ucofia"], base, "mean_pooling", "5-occurrence", skew=True),
    ]


def patch_videos(rng: np.random.Generator, n: int) -> Data:
    """Sentences (n, D), words (n, S, D), frames (n, F, D) and patches (n, F, P, D)."""
    objects, scenes = (_unit(rng.standard_normal((m, DIM))) for m in (N_OBJECTS, N_SCENES))
    gap = _unit(rng.standard_normal(DIM))
    shown = np.argsort(rng.random((n, N_OBJECTS)), axis=1)[:, :4]
    scene = scenes[rng.integers(0, N_SCENES, n)]
    patches = np.repeat(scene[:, None], N_FRAMES * N_PATCHES, axis=1)
    places = np.argsort(rng.random((n, N_FRAMES * N_PATCHES)), axis=1)[:, :6]
    owner = np.concatenate([np.arange(4), [0, 1]])  # two of the four objects are seen twice
    patches[np.arange(n)[:, None], places] = objects[shown[:, owner]]
    hub = (rng.random(n) < 1 / 3) * 0.5
    patches = patches + hub[:, None, None] * gap + _noise(rng, patches.shape, 0.5)
    patches = _unit(patches).reshape(n, N_FRAMES, N_PATCHES, DIM)
    idle = _noise(rng, (n, 2, DIM), 1.0)
    told = np.concatenate([scene[:, None], objects[shown[:, :3]], idle], axis=1)
    words = _unit(told + 0.5 * gap + _noise(rng, told.shape, 0.5))
    frames = patches.mean(2) + _noise(rng, (n, N_FRAMES, DIM), 0.1)
    sentences = words.mean(1) + _noise(rng, (n, DIM), 0.1)
    found = (sentences, words, frames, patches)
    return tuple(torch.from_numpy(x).float() for x in found)  # type: ignore[return-value]


def _train(data: Data, lr: float, seed: int, first_only: bool) -> UCoFiA:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UCoFiA(
            DIM, n_frames=N_FRAMES, n_patches=N_PATCHES, n_words=N_WORDS, n_kept=2, scale=30.0,
            n_samples=50, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    target = torch.arange(BATCH)
    for _ in range(N_STEPS):
        rows = torch.randperm(len(data[0]), generator=generator)[:BATCH]
        levels = model.levels(*(x[rows] for x in data))
        scores = levels[0] if first_only else torch.stack(levels).mean(0)
        optimizer.zero_grad()
        (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def _arms(model: UCoFiA, train: Data, test: Data, back: bool = False) -> dict[str, Tensor]:
    """(queries, gallery) scores of all arms; `back` asks by videos for texts."""
    plain = model.levels(*test)
    bank = model.levels(*test[:2], *train[2:]) if back else model.levels(*train[:2], *test[2:])
    if back:
        plain, bank = ([s.T for s in levels] for levels in (plain, bank))
    balanced = [s + sinkhorn_normalize(b)[1] for s, b in zip(plain, bank, strict=True)]
    own = [s + sinkhorn_normalize(s)[1] for s in plain]
    return {
        "mean_pooling": plain[0],
        "plain": torch.stack(list(plain)).mean(0),
        "ucofia": torch.stack(balanced).mean(0),
        "transductive": torch.stack(own).mean(0),
        **{f"level {i}": scores for i, scores in enumerate(balanced)},
    }


def _recall(scores: Tensor) -> float:
    return float((scores.argmax(1) == torch.arange(len(scores))).float().mean())


def _noise(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> np.ndarray:
    return length * rng.standard_normal(shape) / np.sqrt(DIM)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
