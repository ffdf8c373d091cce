"""Compressed tables on generated clicks: int8 at a mild ratio, hashing at an extreme one.

The samples are those of the unified embedding's experiment: six fields of 20,000 to 10 values
drawn by a power law, 40,000 samples to train on, 10,000 to choose on, 20,000 to report. Every
kind chooses one of two learning rates, and one pass or two, by log loss (the release stops
early). Vectors of 16 numbers, one hidden layer of 32. Fields of at most 200 values stay whole in
every arm.

At 3.5 times less memory int8 is compared with each kind (but deep_hash, which would be slow at
that size), and with the full tables.
At 30 times, where bytes or dimensions for every id no longer fit, robe is compared with the kinds
that do. The last pair is seconds of training, deep_hash against plain hashing.
"""

from __future__ import annotations

from etude.core.tables import LAYERS
from etude.embeddings import CompressionLine, EmbeddingCompressionBench
from etude.experiments.embeddings.unified_embedding import N_TRAIN, N_VALUES, generated_clicks
from etude.tasks.base import Pair

__all__ = ["measure"]

MILD, EXTREME = 3.5, 30.0
AT_EXTREME = ("hash", "quotient_remainder", "tensor_train", "adaptive", "deep_hash")
BATCH, PASSES = 256, (1, 2)


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is int8 against hashing at the mild ratio."""
    data = generated_clicks(seed)
    parts = list(zip(data.ids, data.clicks, strict=True))
    benches = [
        EmbeddingCompressionBench(
            n_values=N_VALUES, n_steps=passes * N_TRAIN // BATCH, batch_size=BATCH, seed=seed
        )
        for passes in PASSES
    ]

    def line(kind: str, ratio: float) -> CompressionLine:
        lines = [bench.run(kind, ratio, *parts) for bench in benches]
        return min(lines, key=lambda found: found.held_loss)

    mild = {kind: line(kind, MILD) for kind in LAYERS if kind != "deep_hash"}
    mild["full_table"] = line("hash", 1.0)  # a row for every id
    extreme = {kind: line(kind, EXTREME) for kind in ("robe", *AT_EXTREME)}

    def pair(metric: str, ours: CompressionLine, other: CompressionLine, name: str) -> Pair:
        values = {
            "auroc": (ours.auroc, other.auroc),
            "seconds": (ours.train_s, other.train_s),
        }[metric]
        return Pair(
            metric=metric, ours=values[0], baseline=values[1], baseline_name=name,
            data="generated_clicks", setting=f"{ours.kind}, {ours.ratio:g} times less memory",
            ours_s=ours.train_s, baseline_s=other.train_s,
        )  # fmt: skip

    others = [kind for kind in mild if kind not in ("int8", "hash")]
    return [
        *(pair("auroc", mild["int8"], mild[kind], kind) for kind in ("hash", *others)),
        *(pair("auroc", extreme["robe"], extreme[kind], kind) for kind in AT_EXTREME),
        pair("seconds", extreme["deep_hash"], extreme["hash"], "hash"),
    ]
