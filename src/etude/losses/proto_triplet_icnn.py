r"""Two distance losses for few-shot episodes: a triplet on prototypes, and a score of neighbors.

An episode has a few support and query rows of each of its classes. c_k is the mean of the support
embeddings of class k. The first loss pulls a query z of class y to its own prototype and pushes
away the nearest wrong one, where d is the Euclidean distance, not squared:

    L = mean_z max(0, d(z, c_y) - min_{k != y} d(z, c_k) + margin)                   (1)

The second scores how the classes of all N rows separate among their nearest others. Row i has m
neighbors at distances d_i1 <= ... <= d_im; o_i is the distance of the first of another class
(infinite if there is none), and only the first k neighbors count from here on:

    e_ij = d_ij / o_i, the row divided by max(1, max_j e_ij)
    same  = 1 - mean_i mean_{j of the class of i} e_ij                                (2)
    other = mean_i mean_{j of other classes} d_ij / max d, or 1 without any           (3)
    gamma = mean_i share of the k neighbors that are of the class of i                (4)
    score = ((same + other) / 2 + gamma) / 2,    loss = -log score                    (5)

with means over the rows that have such a neighbor. With m smaller than a class a separated episode
has no o_i, score 1 and no gradient; m = rows of a class always sees another class.

Source: Mendez-Ruiz, Gonzalez-Zapata, Reyes-Amezcua, Flores-Araiza, Lopez-Tiro, Mendez-Vazquez,
Ochoa-Ruiz, "SuSana Distancia is all you need: Enforcing class separability in metric learning via
two novel distance-based loss functions for few-shot image classification", arXiv:2305.09062.
The authors' loss file was read, the paper's equations were not: (2) to (5) are the file's
"modified score" on support and query together.
Departures: a row is excluded from its own neighbors by its place, not as the nearest one; the
variants against supports or prototypes only are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from etude.core import Card, require

__all__ = ["ProtoTripletLoss", "EpisodicTrainer", "ICNNLoss", "icnn_score"]

CARD = Card(
    slug="proto_triplet_icnn",
    family="losses",
    title="SuSana Distancia is all you need: Enforcing class separability in metric learning via "
    "two novel distance-based loss functions for few-shot image classification",
    year=2023,
    arxiv="2305.09062",
    move="Separate the classes of a few-shot episode by a triplet on class prototypes and by a "
    "score of how pure and how far each row's neighborhood is.",
    task="train",
    claim="On unseen Omniglot characters, five ways and one shot, prototypical cross-entropy with "
    "the prototype triplet is more accurate than prototypical cross-entropy alone.",
    baseline="prototypical",
    metric="accuracy",
    better="higher",
    published="Abstract: 2 % more accurate than other metric-based methods on miniImageNet.",
    fidelity="full",
    cost="M",
    data=(),
    code="",
    departs=("A row is excluded from its own neighbors by its place, not as the nearest one.",),
    search={"margin": (0.5, 0.2, 1.0), "n_shot": (2, 1)},
    example={"margin": 0.5, "n_shot": 2},
)
EPS = 1e-6  # inside the square root, as in the authors' file: no NaN at distance 0
TINY = 1e-7


def _checked(embeddings: Tensor, labels: Tensor) -> Tensor:
    """The embeddings; half precision, whose squares and EPS do not fit, raised to float32."""
    require(embeddings.ndim == 2, "embeddings", "(B, D)", embeddings)
    one_each = labels.shape == embeddings.shape[:1]
    require(one_each, "labels", "(B,), one a row of embeddings", labels)
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    return embeddings.float() if half else embeddings


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """(A, D), (B, D) -> (A, B) Euclidean distances."""
    return ((a[:, None] - b[None]).square().sum(dim=2) + EPS).sqrt()


def _episode(embeddings: Tensor, labels: Tensor, n_shot: int) -> tuple[Tensor, Tensor]:
    """Distances (Q, K) of the queries to the prototypes, and their classes (Q,) as columns.

    The first `n_shot` rows of each label are its support, the others its queries.
    """
    classes, target = labels.unique(return_inverse=True)
    member = F.one_hot(target, len(classes))
    rank = member.cumsum(dim=0).gather(1, target[:, None])[:, 0]
    first = rank <= n_shot
    share = (member * first[:, None]).to(embeddings.dtype)
    prototypes = share.T @ embeddings / share.sum(dim=0)[:, None]
    return _distances(embeddings[~first], prototypes), target[~first]


class ProtoTripletLoss(nn.Module):
    """Equation (1) on a labeled batch read as an episode.

    `margin`: in units of the distance. `n_shot`: the first rows of each label that make its
    prototype; the others are queries. A batch without queries, or with one class, has loss 0.
    """

    def __init__(self, *, margin: float = 0.5, n_shot: int = 2) -> None:
        super().__init__()
        require(margin >= 0 and math.isfinite(margin), "margin", "finite, not negative", margin)
        require(n_shot >= 1, "n_shot", "at least 1", n_shot)
        self.margin, self.n_shot = margin, n_shot

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings (B, D), labels (B,) -> scalar, mean over the queries.

        float16 and bfloat16 are computed, and answered, in float32.
        """
        embeddings = _checked(embeddings, labels)
        d, target = _episode(embeddings, labels, self.n_shot)
        if len(d) == 0 or d.shape[1] < 2:
            return embeddings.sum() * 0
        own = F.one_hot(target, d.shape[1]).bool()
        wrong = d.masked_fill(own, math.inf).min(dim=1).values
        return (d[own] - wrong + self.margin).clamp(min=0).mean()  # (1)


def icnn_score(
    embeddings: Tensor, labels: Tensor, *, k: int = 4, n_neighbors: int | None = None
) -> Tensor:
    """(2) to (5): embeddings (N, D), labels (N,) -> scalar in [0, 1], 1 for separated classes.

    One class alone is separated. float16 and bfloat16 are computed, and answered, in float32.

    Args:
        k: neighbors that count. n_neighbors: m, among which another class is looked for;
            None: the mean number of rows of a class.
    """
    embeddings = _checked(embeddings, labels)
    N = len(embeddings)
    m = round(N / len(labels.unique())) if n_neighbors is None else n_neighbors
    m = min(max(m, k), N - 1)
    require(1 <= k <= m, "k", f"in 1..{m}, the neighbors there are", k)
    apart = _distances(embeddings, embeddings)
    apart = apart.masked_fill(torch.eye(N, dtype=torch.bool, device=apart.device), math.inf)
    d, near = apart.topk(m, dim=1, largest=False)
    same = labels[near] == labels[:, None]
    o = d.masked_fill(same, math.inf).min(dim=1).values
    d, same = d[:, :k], same[:, :k]
    e = d / (o[:, None] + TINY)
    e = e / e.max(dim=1, keepdim=True).values.clamp(min=1)
    n_same, n_other = same.sum(dim=1), (~same).sum(dim=1)
    inner = (e * same).sum(dim=1) / (n_same + TINY)
    tight = 1 - inner.sum() / ((n_same > 0).sum() + TINY)  # (2)
    if bool(same.all()):
        far = torch.ones_like(tight)
    else:
        other = d * ~same
        outer = (other / (other.max() + TINY)).sum(dim=1) / (n_other + TINY)
        far = outer.sum() / ((n_other > 0).sum() + TINY)  # (3)
    gamma = same.to(d.dtype).mean()  # (4)
    return ((tight + far) / 2 + gamma) / 2  # (5)


class ICNNLoss(nn.Module):
    """-log of ``icnn_score`` of a batch; `k` and `n_neighbors` as there."""

    def __init__(self, *, k: int = 4, n_neighbors: int | None = None) -> None:
        super().__init__()
        require(k >= 1, "k", "at least 1", k)
        require(n_neighbors is None or n_neighbors >= k, "n_neighbors", "at least k", n_neighbors)
        self.k, self.n_neighbors = k, n_neighbors

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings (B, D), labels (B,) -> scalar."""
        score = icnn_score(embeddings, labels, k=self.k, n_neighbors=self.n_neighbors)
        return -score.clamp(min=TINY).log()


class EpisodicTrainer:
    """Train a network on random episodes by the mean of the selected losses.

    Args:
        network: (B, ...) -> (B, D). losses: any of "prototypical" (cross-entropy over negative
            squared distances to the prototypes), "proto_triplet" and "icnn".
        n_way, n_shot, n_query: classes of an episode, and rows of each.
        n_steps, lr: of Adam with a cosine decay. margin: of (1).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        losses: Sequence[str] = ("prototypical", "proto_triplet"),
        n_way: int = 5,
        n_shot: int = 1,
        n_query: int = 5,
        n_steps: int = 200,
        lr: float = 1e-3,
        margin: float = 0.5,
        seed: int = 0,
    ) -> None:
        known = {"prototypical", "proto_triplet", "icnn"}
        require(bool(losses) and set(losses) <= known, "losses", f"some of {sorted(known)}", losses)
        require(n_way >= 2, "n_way", "at least 2", n_way)
        require(min(n_shot, n_query) >= 1, "n_shot, n_query", "at least 1", (n_shot, n_query))
        require(n_steps >= 1 and lr > 0, "n_steps, lr", "positive", (n_steps, lr))
        self.network, self.losses = network, tuple(losses)
        self.n_way, self.n_shot, self.n_query = n_way, n_shot, n_query
        self.n_steps, self.lr, self.margin, self.seed = n_steps, lr, margin, seed

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The mean of the selected losses on one episode, supports of a label first."""
        parts = []
        if "prototypical" in self.losses:
            d, target = _episode(embeddings, labels, self.n_shot)
            parts.append(F.cross_entropy(-d.square(), target))
        if "proto_triplet" in self.losses:
            triplet = ProtoTripletLoss(margin=self.margin, n_shot=self.n_shot)
            parts.append(triplet(embeddings, labels))
        if "icnn" in self.losses:
            k = min(4, self.n_shot + self.n_query - 1)
            icnn = ICNNLoss(k=k, n_neighbors=self.n_shot + self.n_query)
            parts.append(icnn(embeddings, labels))
        return torch.stack(parts).mean()

    def fit(self, x: Tensor, target: Tensor) -> EpisodicTrainer:
        """x (N, ...), target (N,) -> self; every class needs n_shot + n_query rows."""
        generator = torch.Generator().manual_seed(self.seed)
        rows_of = [torch.nonzero(target == c)[:, 0] for c in target.unique()]
        each = self.n_shot + self.n_query
        require(len(rows_of) >= self.n_way, "target", f"of {self.n_way} classes or more", target)
        few = min(len(rows) for rows in rows_of)
        require(few >= each, "target", f"of {each} rows a class or more", few)
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.n_steps)
        self.network.train()
        for _ in range(self.n_steps):
            ways = torch.randperm(len(rows_of), generator=generator)[: self.n_way].tolist()
            drawn = [
                rows_of[c][torch.randperm(len(rows_of[c]), generator=generator)[:each]]
                for c in ways
            ]
            rows = torch.cat(drawn)
            optimizer.zero_grad()
            self.loss(self.network(x[rows]), target[rows]).backward()
            optimizer.step()
            schedule.step()
        self.network.eval()
        return self
