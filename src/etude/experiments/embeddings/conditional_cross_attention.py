"""One space per attribute: drawn objects, found by shape, color, texture or size.

An image of 16 x 16 pixels shows one object on noise: a square, disc, cross or ring, of one of
four colors, plain, striped across, striped down or checked, small, medium or large, anywhere. The
four attributes are independent. A seed draws 3,000 images to train on, 500 to choose one of two
learning rates on and 1,000 to report.

All arms have the same patches, two blocks in all (the last is ours or self-attention), the same
number of triplets and 16 numbers an embedding. A triplet's attribute is drawn; the positive
shares the anchor's value of it, the negative does not, all else is free.
- ours: the conditional block;
- one_embedding: the mean of the tokens, one embedding for all attributes;
- separate_heads: the same, and a linear head for each attribute;
- masks: one embedding, a learned non-negative mask for each attribute.

Reported are the mean over attributes of the mean average precision (every test image asks the
other ones), and leakage: how well a linear probe, fitted on half of the test embeddings for
attribute a, tells the other half's other attributes, as a mean over all pairs.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from etude.embeddings import MultiSpaceEmbedder, attribute_triplet_loss
from etude.tasks.base import Pair

__all__ = ["measure"]

N_VALUES = (4, 4, 4, 3)
SIZES = {"train": 3000, "held": 500, "test": 1000}
SIDE, WIDTH, OUT = 16, 32, 16
N_STEPS, BATCH, RATES = 300, 32, (1e-3, 3e-3)
COLORS = ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.3, 0.3, 1.0), (1.0, 1.0, 0.2))
Part = tuple[Tensor, Tensor]


def measure(seed: int) -> list[Pair]:
    """Pairs of one seed; the first is ours against a head an attribute, by precision."""
    parts = _objects(seed)
    precision, leakage, spent = {}, {}, {}
    for name in ("ours", "one_embedding", "separate_heads", "masks"):
        start, best = time.perf_counter(), -1.0
        for lr in RATES:
            model = _train(name, parts["train"], lr, seed)
            held = _precision(model, *parts["held"])
            if held > best:
                best, chosen = held, model
        spent[name] = time.perf_counter() - start
        precision[name] = _precision(chosen, *parts["test"])
        leakage[name] = _leakage(chosen, *parts["test"])

    def pair(metric: str, found: dict[str, float], other: str) -> Pair:
        return Pair(
            metric=metric, ours=found["ours"], baseline=found[other], baseline_name=other,
            data="drawn_objects", setting="four attributes", ours_s=spent["ours"],
            baseline_s=spent[other],
        )  # fmt: skip

    others = ("separate_heads", "masks", "one_embedding")
    return [
        *(pair("mean_average_precision", precision, other) for other in others),
        *(pair("leakage", leakage, other) for other in others),
    ]


class Unconditional(nn.Module):
    """The same network without an asked block: mean of tokens, then by `kind`."""

    def __init__(self, kind: str, base: MultiSpaceEmbedder) -> None:
        super().__init__()
        self.base, self.kind = base, kind
        n = len(N_VALUES) if kind == "separate_heads" else 1
        self.heads = nn.ModuleList(nn.Linear(WIDTH, OUT) for _ in range(n))
        self.norm = nn.LayerNorm(WIDTH)
        self.masks = nn.Parameter(torch.ones(len(N_VALUES), OUT) + 0.3 * torch.randn(4, OUT))

    def tokens(self, x: Tensor) -> Tensor:
        """Images -> (B, T, D)."""
        return self.base.tokens(x)

    def embed(self, tokens: Tensor, attributes: Tensor) -> Tensor:
        """(B, T, D), (B,) -> (B, OUT) unit vectors."""
        mean = self.norm(tokens.mean(dim=1))
        if self.kind == "separate_heads":
            every = torch.stack([head(mean) for head in self.heads], dim=1)
            z = every[torch.arange(len(mean)), attributes]
        else:
            z = self.heads[0](mean)
        if self.kind == "masks":
            z = z * self.masks[attributes].relu()
        return F.normalize(z, dim=1)


Model = MultiSpaceEmbedder | Unconditional


def _train(name: str, train: Part, lr: float, seed: int) -> Model:
    images, values = train
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # an unconditional network has a block more before its mean: as many blocks in all
        model: Model = MultiSpaceEmbedder(
            WIDTH, n_attributes=len(N_VALUES), depth=2 if name == "ours" else 3, out_dim=OUT,
            image_size=SIDE, generator=generator,
        )  # fmt: skip
        if name != "ours":
            model = Unconditional(name, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=N_STEPS)
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(N_STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        asked = torch.randint(len(N_VALUES), (BATCH,), generator=generator)
        same = values[rows, asked][:, None] == values[:, asked].T  # (BATCH, N)
        lots = torch.rand(same.shape, generator=generator)
        positive = lots.masked_fill(~same, -1).argmax(dim=1)
        negative = lots.masked_fill(same, -1).argmax(dim=1)
        tokens = model.tokens(images[torch.cat([rows, positive, negative])])
        z = model.embed(tokens, asked.repeat(3)).chunk(3)
        loss = attribute_triplet_loss(*z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return model


@torch.no_grad()
def _embeddings(model: Model, images: Tensor) -> list[Tensor]:
    tokens = model.tokens(images)  # once for all attributes
    n = range(len(N_VALUES))
    return [model.embed(tokens, torch.full((len(images),), a)) for a in n]


def _precision(model: Model, images: Tensor, values: Tensor) -> float:
    """Mean over attributes and queries of the average precision, the query itself left out."""
    found = []
    for a, z in enumerate(_embeddings(model, images)):
        scores = (z @ z.T).fill_diagonal_(-torch.inf)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :-1]
        right = (values[:, a][order] == values[:, a][:, None]).double()
        at = right.cumsum(dim=1) / torch.arange(1, right.shape[1] + 1)
        found.append(float(((at * right).sum(dim=1) / right.sum(dim=1)).mean()))
    return float(np.mean(found))


def _leakage(model: Model, images: Tensor, values: Tensor) -> float:
    half, found = len(images) // 2, []
    for a, z in enumerate(_embeddings(model, images)):
        for b in range(len(N_VALUES)):
            if a != b:
                probe = LogisticRegression(C=10.0, max_iter=300)
                probe.fit(z[:half].numpy(), values[:half, b].numpy())
                found.append(probe.score(z[half:].numpy(), values[half:, b].numpy()))
    return float(np.mean(found))


def _objects(seed: int) -> dict[str, Part]:
    """Images (N, 3, SIDE, SIDE) and values (N, 4): shape, color, texture, size."""
    rng, total = np.random.default_rng([seed, 201]), sum(SIZES.values())
    values = np.stack([rng.integers(n, size=total) for n in N_VALUES], axis=1)
    radius = np.array([3.0, 4.5, 6.0])[values[:, 3]][:, None, None]
    center = rng.uniform(radius[:, 0], SIDE - 1 - radius[:, 0], (total, 2))
    grid = np.arange(SIDE)
    dy = (grid[:, None] - center[:, 0, None, None]) / radius
    dx = (grid[None, :] - center[:, 1, None, None]) / radius
    far, square = np.hypot(dy, dx), np.maximum(abs(dy), abs(dx))
    shapes = np.stack([
        square <= 0.9, far <= 1.05, (np.minimum(abs(dy), abs(dx)) <= 0.35) & (square <= 1),
        (far <= 1.1) & (far >= 0.55),
    ])  # fmt: skip
    rows = np.arange(total)
    inside = shapes[values[:, 0], rows]
    y, x = grid[:, None] // 2 % 2, grid[None, :] // 2 % 2
    textures = np.stack([np.ones((SIDE, SIDE)), y + 0 * x, x + 0 * y, (x + y) % 2])
    light = 0.35 + 0.65 * textures[values[:, 2]]
    color = np.array(COLORS)[values[:, 1]]
    images = (inside * light)[:, None] * color[:, :, None, None]
    images = images + rng.normal(0, 0.15, images.shape)
    whole = torch.from_numpy(images.astype(np.float32)), torch.from_numpy(values)
    cut = list(SIZES.values())
    pieces = zip(whole[0].split(cut), whole[1].split(cut), strict=True)
    return dict(zip(SIZES, pieces, strict=True))
