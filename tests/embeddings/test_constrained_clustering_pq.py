"""RepCONC: the plan against loops and the release, the gradients, OPQ against faiss, the search.

Released code: jingtaozhan/RepCONC at 64f3f8a, modeling_repconc.py, center_distance_for_constraint
and sinkhorn_algorithm, eps 0.003, 100 rounds, in float64. Inputs: torch generator seed 5, randn
(64, 8) vectors then (2, 4, 4) centroids. Its first twelve codes, the counts of each centroid and
the sum of the squared plan are below; our plan differed from it by 3.2e-14 at most.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.core import EtudeError
from etude.embeddings import ConstrainedPQ, RepCONCTrainer, ivf_pq_search

RELEASED_CODES = [
    [1, 2], [0, 1], [0, 1], [0, 3], [2, 1], [3, 2], [3, 1], [1, 1], [0, 0], [3, 2], [2, 0], [3, 0],
]  # fmt: skip
RELEASED_COUNTS = [[15, 14, 13, 22], [12, 24, 16, 12]]
RELEASED_SQUARES = 126.29591060252689


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    quantizer = ConstrainedPQ(8, n_parts=2, n_codes=4).double()
    quantizer.centroids.data.copy_(torch.randn(2, 4, 4, generator=generator, dtype=torch.float64))
    return quantizer, x


def slow_distances(quantizer, x):
    found = torch.zeros(2, len(x), 4, dtype=torch.float64)
    for m in range(2):
        for i in range(len(x)):
            for k in range(4):
                part = x[i, 4 * m : 4 * m + 4]
                found[m, i, k] = ((part - quantizer.centroids[m, k]) ** 2).sum()
    return found


def test_same_plan_and_codes_as_the_release(case):
    quantizer, x = case
    plan = quantizer.plan(slow_distances(quantizer, x))
    codes = quantizer.assign(x, balanced=True)
    assert codes[:12].tolist() == RELEASED_CODES
    assert [torch.bincount(c, minlength=4).tolist() for c in codes.T] == RELEASED_COUNTS
    assert plan.pow(2).sum().item() == pytest.approx(RELEASED_SQUARES, rel=1e-10)


def test_nearest_codes_are_the_nearest(case):
    quantizer, x = case
    nearest = slow_distances(quantizer, x).argmin(dim=2).T
    assert torch.equal(quantizer.assign(x), nearest)


def test_the_plan_is_balanced(case):
    quantizer, x = case
    rounds = ConstrainedPQ(8, n_parts=2, n_codes=4, n_steps=5000, eps=0.05).double()
    plan = rounds.plan(slow_distances(quantizer, x))
    torch.testing.assert_close(plan.sum(2), torch.ones(2, 64, dtype=torch.float64))
    torch.testing.assert_close(
        plan.sum(1), torch.full((2, 4), 16.0, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


def test_the_plan_knows_no_scale_and_no_origin(case):
    quantizer, x = case
    d = slow_distances(quantizer, x)
    plan = quantizer.plan(d)
    # the 1e-5 beside the half range is 2e-6 of it here, times 1 / eps in the exponent
    torch.testing.assert_close(quantizer.plan(d + 3.0), plan, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(quantizer.plan(7.0 * d), plan, rtol=0, atol=0.02)


@pytest.mark.parametrize("eps", [1e-3, 1e-6])
def test_a_small_eps_leaves_a_plan(case, eps):
    """exp(1 / eps) and exp(-2 / eps) have no float64; the limit is a hard, balanced choice."""
    quantizer, x = case
    quantizer.eps, quantizer.n_steps = eps, 2000
    plan = quantizer.plan(slow_distances(quantizer, x))
    torch.testing.assert_close(plan.sum(2), torch.ones(2, 64, dtype=torch.float64))
    assert (plan.max(dim=2).values > 0.99).double().mean() > 0.8


def test_codes_collapse_without_the_constraint_and_not_with_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 8, generator=generator)
    quantizer = ConstrainedPQ(8, n_parts=1, n_codes=16)
    quantizer.centroids.data = x[None, :16] * 3  # far out: some are never the nearest
    nearest, balanced = (
        torch.bincount(quantizer.assign(x, balanced=b)[:, 0], minlength=16) for b in (False, True)
    )
    assert nearest.max() > 80
    assert nearest.min() < 10
    assert balanced.max() < 50
    assert balanced.min() > 20


def test_gradients_go_straight_through(case):
    quantizer, x = case
    vectors = x.clone().requires_grad_()
    weights = torch.linspace(-1, 1, 8, dtype=torch.float64)
    out = quantizer(vectors)
    codes = quantizer.assign(x, balanced=True)
    torch.testing.assert_close(out, quantizer.decode(codes))
    (out * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights.expand(64, 8))
    counts = torch.bincount(codes[:, 0], minlength=4)[:, None]
    torch.testing.assert_close(quantizer.centroids.grad[0], counts * weights[:4])


def test_as_many_centroids_as_vectors_lose_nothing():
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    quantizer = ConstrainedPQ(6, n_parts=2, n_codes=16).double()
    quantizer.initialize(x, n_rounds=3)
    rotated = quantizer.rotate(x)
    torch.testing.assert_close(
        quantizer.decode(quantizer.assign(rotated)), rotated, atol=1e-9, rtol=0
    )
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(quantizer.rotation @ quantizer.rotation.T, eye)


def test_the_start_is_as_good_as_faiss_opq_and_better_than_its_pq():
    faiss = pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(16, 16, generator=generator) * torch.linspace(2, 0.1, 16)[:, None]
    x = torch.randn(1500, 16, generator=generator) @ mix
    errors = {}
    for name, rounds in (("pq", 0), ("opq", 30)):
        quantizer = ConstrainedPQ(16, n_parts=4, n_codes=16)
        quantizer.initialize(x, n_rounds=rounds)
        rotated = quantizer.rotate(x)
        decoded = quantizer.decode(quantizer.assign(rotated))
        errors[name] = ((decoded - rotated) ** 2).sum(1).mean().item()
    opq = faiss.OPQMatrix(16, 4)
    opq.pq = faiss.ProductQuantizer(16, 4, 4)
    opq.train(x.numpy())
    turned = opq.apply(x.numpy())
    pq = faiss.ProductQuantizer(16, 4, 4)
    pq.train(turned)
    theirs = ((pq.decode(pq.compute_codes(turned)) - turned) ** 2).sum(1).mean()
    assert errors["opq"] < 1.1 * theirs
    assert errors["opq"] < 0.95 * errors["pq"]


def test_the_loss_of_a_step_is_the_equation():
    """The gradient of (5), written out, moves the centroids."""
    generator = torch.Generator().manual_seed(3)
    documents = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    queries = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    positive = torch.tensor([0, 1, 2, 3, 4, 0])  # document 0 twice

    def quantizer():
        made = ConstrainedPQ(4, n_parts=2, n_codes=3).double()
        made.centroids.data.copy_(torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 3, 2))
        return made

    ours = quantizer()
    trainer = RepCONCTrainer(
        ours, nn.Identity(), nn.Identity(), centroid_lr=0.1, mse_weight=0.5, temperature=2.0
    )
    trainer.fit(queries, documents, positive, n_steps=1)

    theirs = quantizer()
    codes = theirs.assign(documents[positive], balanced=True)
    quantized = theirs.decode(codes)
    terms = []
    for i in range(6):
        # documents 0 of rows 0 and 5 are one document: never each other's negative; every other
        # row sees it once, in the column that came first in the batch
        scores = {j: (queries[i] @ quantized[j]) / 2.0 for j in range(6)}
        others = [j for j in range(6) if j != i and positive[j] != positive[i]]
        seen: set[int] = set()
        kept = [i]
        order = torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist()
        for j in order:
            if j in others and int(positive[j]) not in seen:
                kept.append(j)
                seen.add(int(positive[j]))
        terms.append(torch.logsumexp(torch.stack([scores[j] for j in kept]), 0) - scores[i])
    loss = torch.stack(terms).mean() + 0.5 * ((quantized - documents[positive]) ** 2).sum(1).mean()
    loss.backward()
    torch.testing.assert_close(ours.centroids.grad, theirs.centroids.grad)
    moved = theirs.centroids.data - 0.1 * theirs.centroids.grad.sign()  # AdamW's first step
    torch.testing.assert_close(ours.centroids.data, moved, atol=1e-6, rtol=0)


def test_training_finds_the_documents_again():
    generator = torch.Generator().manual_seed(4)
    documents = F.normalize(torch.randn(256, 8, generator=generator), dim=1)
    queries = documents + 0.2 * torch.randn(256, 8, generator=generator)
    positive = torch.arange(256)
    encoder = nn.Linear(8, 8, bias=False)
    nn.init.eye_(encoder.weight)
    quantizer = ConstrainedPQ(8, n_parts=4, n_codes=16)
    quantizer.initialize(documents)

    def recall():
        with torch.no_grad():
            codes = quantizer.assign(quantizer.rotate(documents))
            _, found = ivf_pq_search(quantizer, codes, encoder(queries), k=1)
        return float((found[:, 0] == positive).float().mean())

    before = recall()
    trainer = RepCONCTrainer(
        quantizer, encoder, nn.Identity(), lr=3e-3, centroid_lr=5e-3, temperature=0.1
    )
    trainer.fit(queries, documents, positive, n_steps=30)
    fixed = quantizer.assign(quantizer.rotate(documents))
    codes = trainer.fit_queries(queries, documents, positive, n_steps=30)
    assert torch.equal(codes, fixed)
    assert recall() > before + 0.02


def test_mined_negatives_are_the_best_documents_but_the_wanted_one():
    """A step of stage 2 in loops: every query against its own first three wrong documents."""
    generator = torch.Generator().manual_seed(6)
    documents = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    queries = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    positive, start = torch.tensor([0, 3, 8, 3, 2]), torch.randn(2, 5, 2, generator=generator)
    ours, theirs = (ConstrainedPQ(4, n_parts=2, n_codes=5).double() for _ in range(2))
    for made in (ours, theirs):
        made.centroids.data.copy_(start)
    trainer = RepCONCTrainer(
        ours, nn.Identity(), nn.Identity(), centroid_lr=0.1, temperature=2.0, batch_size=5
    )
    codes = trainer.fit_queries(queries, documents, positive, n_steps=1, n_mined=3)
    quantized, terms = theirs.decode(codes), []
    for query, wanted in zip(queries, positive.tolist(), strict=True):
        scores = [query @ x / 2.0 for x in quantized]
        others = sorted((j for j in range(9) if j != wanted), key=lambda j: -scores[j].item())
        kept = torch.stack([scores[j] for j in (wanted, *others[:3])])
        terms.append(kept.logsumexp(dim=0) - scores[wanted])
    torch.stack(terms).mean().backward()
    torch.testing.assert_close(ours.centroids.grad, theirs.centroids.grad)


def test_hard_negatives_join_the_batch():
    """Two wrong documents a query, drawn in turn: their centroids move away from the queries."""
    documents = torch.eye(5, dtype=torch.float64)
    quantizer = ConstrainedPQ(5, n_parts=1, n_codes=5).double()
    quantizer.centroids.data.copy_(documents[None])
    trainer = RepCONCTrainer(
        quantizer, nn.Identity(), nn.Identity(), centroid_lr=0.01, batch_size=2, balanced=False
    )
    data = documents[:2] + 0.5, documents, torch.tensor([0, 1])
    trainer.fit(*data, n_steps=8, negatives=torch.tensor([[2, 3], [2, 3]]))
    moved = (quantizer.centroids.data[0] - documents)[2:]
    assert (moved < -0.01).all(dim=1).tolist() == [True, True, False]
    assert moved[2].abs().max() == 0  # nobody drew it


def test_search_is_the_inner_product_with_the_decoded(case):
    quantizer, x = case
    quantizer.rotation.copy_(torch.linalg.qr(x[:8])[0])
    codes = quantizer.assign(quantizer.rotate(x))
    queries = x[:5] + 0.1
    scores = quantizer.rotate(queries) @ quantizer.decode(codes).T
    values, ids = ivf_pq_search(quantizer, codes, queries, k=7)
    torch.testing.assert_close(values, scores.gather(1, ids))
    torch.testing.assert_close(values, scores.topk(7).values)
    # every list read is the same as no lists; one list of several finds no better
    wide, _ = ivf_pq_search(quantizer, codes, queries, k=7, n_lists=4, n_probes=4)
    torch.testing.assert_close(wide, values)
    narrow, _ = ivf_pq_search(quantizer, codes, queries, k=1, n_lists=4, n_probes=1)
    assert (narrow <= values[:, :1]).all()
    assert (narrow < values[:, :1]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 9}, "dim must be a multiple of n_parts"),
        ({"n_codes": 1}, "n_codes must be in 2"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(EtudeError, match=message):
        ConstrainedPQ(**({"dim": 8, "n_parts": 2} | change))


def test_refusals_of_training_and_search(case):
    quantizer, x = case
    with pytest.raises(EtudeError, match="vectors must be at least 4"):
        quantizer.initialize(x[:3])
    with pytest.raises(EtudeError, match="temperature must be positive"):
        RepCONCTrainer(quantizer, nn.Identity(), nn.Identity(), temperature=0.0)
    trainer = RepCONCTrainer(quantizer, nn.Identity(), nn.Identity())
    for train in (trainer.fit, trainer.fit_queries):
        with pytest.raises(EtudeError, match="positive must be"):
            train(x, x, torch.arange(3), n_steps=1)
    with pytest.raises(EtudeError, match=r"n_mined must be in 0\.\.63"):
        trainer.fit_queries(x, x, torch.arange(64), n_steps=1, n_mined=64)
    with pytest.raises(EtudeError, match=r"k must be in 1\.\.64"):
        ivf_pq_search(quantizer, quantizer.assign(x), x, k=65)
