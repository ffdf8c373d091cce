"""Tables of learned vectors in fewer numbers or fewer bits: nine layers with one interface.

A layer is told how many ids, how wide, and how many float32 numbers' room it may take in all
tensors that answering needs; it takes the largest size that fits, or refuses. The equations are
those of ``etude.embeddings.embedding_compression_bench``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from etude.core.errors import require

__all__ = ["LAYERS", "TableLayer"]

PRIME = (1 << 31) - 1
SPREAD = 0.25  # deviation of the starting vectors, for every layer
N_HASHES, BUCKETS = 64, 1_000_000


class TableLayer(nn.Module, ABC):
    """ids (B,) -> (B, D).

    `penalty` is to be added to the loss; ``finish`` drops what only training needs.

    Args:
        sizes: values of each field; ids count through all fields, n in all.
        dim: width D.
        numbers: room for that many float32 numbers.
        counts: (n,) how often each id occurs in training.
        generator: of starting values and hashes.

    Raises:
        EtudeError: the layer does not fit.
    """

    penalty: Tensor | float = 0.0

    def __init__(
        self, sizes: Sequence[int], dim: int, numbers: int, counts: Tensor,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n, self.sizes, self.dim = sum(sizes), tuple(sizes), dim
        self.build(numbers, counts, generator)

    @abstractmethod
    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        """Make the tensors."""

    def finish(self) -> None:
        """Keep only what answering needs."""


def _normal(generator: torch.Generator, *shape: int, spread: float = SPREAD) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=generator) * spread)


def _seeds(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randint(1, PRIME, shape, generator=generator)


def _three_factors(dim: int) -> tuple[int, int, int]:
    """The most equal a <= b <= c with a b c = dim."""
    triples = [
        (a, b, dim // (a * b)) for a in range(1, dim + 1) for b in range(a, dim + 1)
        if dim % (a * b) == 0 and b <= dim // (a * b)
    ]  # fmt: skip
    return min(triples, key=sum)


class Hash(TableLayer):
    """Rows shared by ids of one remainder; the full table where there is room for it."""

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        require(numbers >= self.dim, "the budget", f"at least {self.dim} numbers", numbers)
        self.table = _normal(generator, min(self.n, numbers // self.dim), self.dim)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table[ids % len(self.table)]  # (2)


class QuotientRemainder(TableLayer):
    """A row of quotients times a row of remainders: no two ids share both."""

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        remainders = np.arange(1, math.isqrt(self.n) + 2)
        fits = np.flatnonzero(-(-self.n // remainders) + remainders <= numbers // self.dim)
        require(len(fits) > 0, "the budget", f"{2 * self.n**0.5:.0f} rows", numbers // self.dim)
        r = int(remainders[fits[0]])  # the most quotients: the fewest ids share one
        self.quotients = _normal(generator, -(-self.n // r), self.dim, spread=SPREAD**0.5)
        self.remainders = _normal(generator, r, self.dim, spread=SPREAD**0.5)

    def forward(self, ids: Tensor) -> Tensor:
        r = len(self.remainders)
        return self.quotients[ids // r] * self.remainders[ids % r]  # (3)


class TensorTrain(TableLayer):
    """Three small cores whose product is the table."""

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        n3 = math.ceil(self.n ** (1 / 3) - 1e-9)
        n2 = math.ceil((self.n / n3) ** 0.5 - 1e-9)
        rows, widths = (-(-self.n // (n2 * n3)), n2, n3), _three_factors(self.dim)
        outer = rows[0] * widths[0] + rows[2] * widths[2]
        inner = rows[1] * widths[1]
        rank = int((math.sqrt(outer**2 + 4 * inner * numbers) - outer) / (2 * inner))
        require(rank >= 1, "the budget", "that of tensor trains of rank 1", numbers)
        spread = (SPREAD / rank) ** (1 / 3)  # rank^2 products of three
        shapes = [(1, widths[0], rank), (rank, widths[1], rank), (rank, widths[2], 1)]
        self.cores = nn.ParameterList(
            _normal(generator, n, *shape, spread=spread)
            for n, shape in zip(rows, shapes, strict=True)
        )

    def forward(self, ids: Tensor) -> Tensor:
        first, second, third = self.cores
        i, rest = ids % len(first), ids // len(first)
        j, k = rest % len(second), rest // len(second)
        left = torch.einsum("bxpr,bryq->bpyq", first[i], second[j])  # (4)
        return torch.einsum("bpyq,bqzx->bpyz", left, third[k]).flatten(1)


class Robe(TableLayer):
    """Each coordinate a number of one flat array, with a sign."""

    coefficients: Tensor

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        self.register_buffer("coefficients", _seeds(generator, 2, 3))
        require(numbers > 12, "the budget", "more than 12 numbers", numbers)
        self.array = _normal(generator, numbers - 12)  # six seeds of 8 bytes

    def forward(self, ids: Tensor) -> Tensor:
        a, b, c = self.coefficients[..., None, None].unbind(1)  # (2, 1, 1): place and sign
        mixed = (a * ids[:, None] + b * torch.arange(self.dim) + c) % PRIME
        return self.array[mixed[0] % len(self.array)] * (2 * (mixed[1] % 2) - 1)  # (5)


class Adaptive(TableLayer):
    """Own rows for half of the room, the most frequent ids first; the others share."""

    frequent: Tensor

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        n_own = min(self.n - 1, numbers // 2 // (self.dim + 1))
        n_shared = (numbers - n_own * (self.dim + 1)) // self.dim
        require(n_own >= 1 and n_shared >= 1, "the budget", "two rows at least", numbers)
        frequent = torch.topk(counts, n_own).indices.sort().values
        self.register_buffer("frequent", frequent.int())
        self.own = _normal(generator, n_own, self.dim)
        self.shared = _normal(generator, n_shared, self.dim)

    def forward(self, ids: Tensor) -> Tensor:
        place = torch.searchsorted(self.frequent, ids.int()).clamp(max=len(self.frequent) - 1)
        known = (self.frequent[place] == ids)[:, None]
        return torch.where(known, self.own[place], self.shared[ids % len(self.shared)])  # (6)


class DeepHash(TableLayer):
    """No table: a network computes the vector from hashes of the id."""

    coefficients: Tensor

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        self.register_buffer("coefficients", _seeds(generator, 2, N_HASHES))
        width = 0
        while 4 * N_HASHES + self._numbers(width + 1) <= numbers:
            width += 1
        require(width >= 1, "the budget", "that of a network of width 1", numbers)
        layers: list[nn.Module] = []
        for i in range(5):
            linear = nn.Linear(width if i else N_HASHES, width)
            layers += [linear, nn.BatchNorm1d(width), nn.Mish()]
        self.network = nn.Sequential(*layers, nn.Linear(width, self.dim))
        for module in self.network.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)

    def _numbers(self, w: int) -> int:
        linear = N_HASHES * w + 4 * w * w + 5 * w + w * self.dim + self.dim
        return linear + 5 * (4 * w + 2)  # normalization: four a unit and a counter of 8 bytes

    def forward(self, ids: Tensor) -> Tensor:
        a, b = self.coefficients
        hashes = (a * ids[:, None] + b) % PRIME % BUCKETS
        vectors: Tensor = self.network(hashes * (2 / (BUCKETS - 1)) - 1)  # (7)
        return vectors


class ProductCodes(TableLayer):
    """A byte a part of the vector, the number of a centroid."""

    frequent: Tensor
    codes: Tensor | None

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        fits = [m for m in range(1, self.dim + 1) if self.dim % m == 0
                and -(-self.n * m // 4) + 256 * self.dim <= numbers]  # fmt: skip
        require(len(fits) > 0, "the budget", "that of codes of one byte", numbers)
        self.table = _normal(generator, self.n, self.dim)
        self.centroids = _normal(generator, fits[-1], 256, self.dim // fits[-1])
        frequent = torch.zeros(self.n, dtype=torch.bool)
        frequent[torch.topk(counts, max(1, self.n // 10)).indices] = True
        self.register_buffer("frequent", frequent)
        self.register_buffer("codes", None)

    def nearest(self, ids: Tensor) -> Tensor:
        parts = self.table[ids].reshape(len(ids), len(self.centroids), -1)
        distance = torch.cdist(parts.transpose(0, 1), self.centroids).transpose(0, 1)
        distance[~self.frequent[ids], :, 64:] = torch.inf
        return distance.argmin(dim=2)  # (B, M)

    def forward(self, ids: Tensor) -> Tensor:
        part = torch.arange(len(self.centroids))
        if self.codes is not None:
            return self.centroids[part, self.codes[ids].long()].flatten(1)
        with torch.no_grad():
            codes = self.nearest(ids)
        chosen, own = self.centroids[part, codes].flatten(1), self.table[ids]
        self.penalty = (chosen - own.detach()).square().mean()
        return own + (chosen - own).detach()  # (8)

    @torch.no_grad()
    def finish(self) -> None:
        self.codes = torch.cat(
            [self.nearest(p) for p in torch.split(torch.arange(self.n), 4096)]
        ).byte()
        self.penalty = 0.0
        del self.table, self.frequent


class Int8(TableLayer):
    """A byte a coordinate."""

    scale: Tensor
    codes: Tensor | None

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        need = -(-self.n * self.dim // 4) + 1
        require(numbers >= need, "the budget", f"at least {need} numbers", numbers)
        self.table = _normal(generator, self.n, self.dim)
        self.register_buffer("scale", torch.tensor(0.01))
        self.register_buffer("codes", None)

    def forward(self, ids: Tensor) -> Tensor:
        if self.codes is not None:
            return self.codes[ids] * self.scale
        own = self.table[ids]
        coded = (own / self.scale).round().clamp(-127, 127) * self.scale
        return own + (coded - own).detach()  # (9)

    @torch.no_grad()
    def finish(self) -> None:
        self.codes = (self.table / self.scale).round().clamp(-127, 127).to(torch.int8)
        del self.table


class MixedDimension(TableLayer):
    """Fewer dimensions for fields of more values, and a projection a field."""

    def build(self, numbers: int, counts: Tensor, generator: torch.Generator) -> None:
        sizes = np.asarray(self.sizes, dtype=np.float64)
        for power in np.linspace(0, 1, 201):  # the least unequal widths that fit
            widths = np.maximum(np.round(self.dim * (sizes / sizes.min()) ** -power), 1)
            cost = sizes * widths + np.where(widths < self.dim, widths * self.dim, 0)
            if cost.sum() <= numbers:
                break
        require(cost.sum() <= numbers, "the budget", f"{cost.sum():.0f} numbers", numbers)
        self.first = [0, *np.cumsum(self.sizes).tolist()]
        self.tables, self.projections = nn.ParameterList(), nn.ParameterList()
        for n, d in zip(self.sizes, widths.astype(int).tolist(), strict=True):
            self.tables.append(_normal(generator, n, d, spread=SPREAD if d == self.dim else 1.0))
            shape = (d, self.dim) if d < self.dim else (0, self.dim)
            self.projections.append(_normal(generator, *shape, spread=SPREAD / d**0.5))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.tables[0].new_empty(len(ids), self.dim)
        for f, (table, projection) in enumerate(zip(self.tables, self.projections, strict=True)):
            here = (ids >= self.first[f]) & (ids < self.first[f + 1])
            rows = table[ids[here] - self.first[f]]
            out[here] = rows @ projection if len(projection) else rows  # (10)
        return out


LAYERS: dict[str, type[TableLayer]] = {
    "hash": Hash, "quotient_remainder": QuotientRemainder, "tensor_train": TensorTrain,
    "robe": Robe, "adaptive": Adaptive, "deep_hash": DeepHash, "product_codes": ProductCodes,
    "int8": Int8, "mixed_dimension": MixedDimension,
}  # fmt: skip
