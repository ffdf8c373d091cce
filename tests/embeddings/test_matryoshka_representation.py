"""Matryoshka loss against loops and the released code, and retrieval against brute force.

Official code: RAIVNLab/MRL at 7ccb42d. MRL.py (`MRL_Linear_Layer` and `Matryoshka_CE_Loss`)
was run in float64 on the weights and data of `official_inputs`; loss and gradient norm agree to
1e-12. The `rerank` function of retrieval/reranking.ipynb was run on the vectors of
`official_vectors`, starting from an exact search at 4 dimensions; the rankings are equal.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.embeddings import (
    MatryoshkaHead,
    MatryoshkaLoss,
    adaptive_retrieval,
    funnel_retrieval,
)

SIZES = (2, 4, 8)


def official_inputs(tied, **options):
    generator = torch.Generator().manual_seed(0)
    loss = MatryoshkaLoss(8, 3, sizes=SIZES, tied=tied, **options).double()
    with torch.no_grad():
        for weight in loss.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    z = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    return loss, z, torch.tensor([0, 1, 2, 1, 0])


def official_vectors():
    rng = np.random.default_rng(0)
    documents, queries = rng.normal(size=(300, 32)), rng.normal(size=(4, 32))
    return queries, documents


def by_loops(loss, z, target, tied, weights=(1, 1, 1)):
    total = 0.0
    for i, m in enumerate(SIZES):
        head = loss.head.heads[0 if tied else i]
        w, b = head.weight.tolist(), head.bias.tolist()
        for row, y in zip(z.tolist(), target.tolist(), strict=True):
            logits = [b[k] + sum(w[k][d] * row[d] for d in range(m)) for k in range(3)]
            log_sum = math.log(sum(math.exp(h) for h in logits))
            total += weights[i] * (log_sum - logits[y]) / len(target)
    return total


@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_equation_in_loops(tied):
    loss, z, target = official_inputs(tied)
    assert loss(z, target).item() == pytest.approx(by_loops(loss, z, target, tied), rel=1e-12)
    weights = (1.0, 0.5, 0.25)
    weighted, z, target = official_inputs(tied, weights=weights)
    expected = by_loops(weighted, z, target, tied, weights)
    assert weighted(z, target).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("tied", "value", "slope"),
    [(False, 5.787653470407806, 1.727544824132387), (True, 5.176720842587148, 2.2851252391168524)],
)
def test_equals_the_released_code(tied, value, slope):
    loss, z, target = official_inputs(tied)
    z.requires_grad_(True)
    result = loss(z, target)
    result.backward()
    assert result.item() == pytest.approx(value, rel=1e-12)
    assert z.grad.norm().item() == pytest.approx(slope, rel=1e-12)


def test_one_size_is_the_ordinary_classifier():
    loss = MatryoshkaLoss(8, 3, sizes=(8,))
    z, target = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 3
    head = loss.head.heads[0]
    logits = z @ head.weight.T + head.bias
    torch.testing.assert_close(loss(z, target), F.cross_entropy(logits, target))
    torch.testing.assert_close(loss.classify(z), logits)


def test_tied_heads_read_a_prefix_as_the_rest_being_zero():
    loss, z, _ = official_inputs(tied=True)
    for m in SIZES:
        padded = torch.cat([z[:, :m], torch.zeros(5, 8 - m)], dim=1)
        torch.testing.assert_close(loss.logits_at(z, m), loss.classify(padded))
    assert len(list(loss.parameters())) == 2


def test_a_coordinate_learns_from_the_sizes_that_hold_it():
    loss, z, target = official_inputs(tied=False)
    z.requires_grad_(True)
    for m in SIZES:
        (slope,) = torch.autograd.grad(F.cross_entropy(loss.logits_at(z, m), target), z)
        assert (slope[:, m:] == 0).all()
        assert (slope[:, :m] != 0).all()


@pytest.mark.parametrize("tied", [False, True])
def test_gradcheck(tied):
    loss, z, target = official_inputs(tied)
    weights = tuple(loss.parameters())
    z.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e, *_: loss(e, target), (z, *weights))


def test_head_lists_logits_by_size_and_cut_embeddings_suffice():
    head = MatryoshkaHead(8, 3, sizes=SIZES, generator=torch.Generator().manual_seed(0))
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    for logits, m in zip(head(z), SIZES, strict=True):
        torch.testing.assert_close(logits, head.logits_at(z[:, :m], m))
    again = MatryoshkaHead(8, 3, sizes=SIZES, generator=torch.Generator().manual_seed(0))
    assert all(
        torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True)
    )
    assert all(h.weight.abs().max() <= 1 / math.sqrt(h.in_features) for h in head.heads)


def test_default_sizes_double_from_eight():
    assert MatryoshkaHead(64, 3).sizes == (8, 16, 32, 64)
    assert MatryoshkaHead(100, 3).sizes == (8, 16, 32, 64, 100)
    assert MatryoshkaHead(8, 3).sizes == (8,)
    assert MatryoshkaHead(5, 3).sizes == (5,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_value_and_gradient_stay_finite(dtype):
    loss = MatryoshkaLoss(8, 3, sizes=SIZES, generator=torch.Generator().manual_seed(0)).to(dtype)
    z = torch.full((2, 8), 1e4, dtype=dtype)
    z[1] *= -1
    z.requires_grad_(True)
    value = loss(z, torch.tensor([0, 2]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


def test_one_class_costs_nothing():
    assert MatryoshkaLoss(8, 1)(torch.ones(3, 8), torch.zeros(3, dtype=torch.long)).item() == 0


def brute_force(queries, documents, dim, among=None):
    """Row numbers by cosine of the prefixes, best first, one query after the other."""
    ranked = []
    for i, q in enumerate(queries):
        rows = range(len(documents)) if among is None else among[i]
        cosines = {
            int(r): float(q[:dim] @ documents[r][:dim])
            / math.sqrt(float(q[:dim] @ q[:dim]) * float(documents[r][:dim] @ documents[r][:dim]))
            for r in rows
        }
        ranked.append(sorted(cosines, key=lambda r: -cosines[r]))
    return np.array(ranked)


def test_retrieval_equals_the_released_code():
    queries, documents = official_vectors()
    funnel, _ = funnel_retrieval(
        queries, documents, first_dim=4, dims=(8, 16, 32), n_kept=(40, 20, 5)
    )
    assert funnel.tolist() == [
        [0, 39, 199, 115, 11], [192, 72, 161, 37, 299], [136, 163, 74, 286, 34],
        [69, 115, 199, 91, 28],
    ]  # fmt: skip
    adaptive, _ = adaptive_retrieval(queries, documents, short_dim=4, n_candidates=40, top_k=5)
    assert adaptive.tolist() == [
        [0, 270, 39, 109, 134], [85, 135, 192, 126, 77], [132, 136, 259, 276, 163],
        [69, 248, 117, 180, 270],
    ]  # fmt: skip


def test_retrieval_equals_brute_force_and_exact_search():
    queries, documents = official_vectors()
    documents = documents * np.linspace(0.1, 9, 300)[:, None]  # lengths must not matter
    short = brute_force(queries, documents, 5)[:, :30]
    found, _ = adaptive_retrieval(
        queries, documents, short_dim=5, long_dim=20, n_candidates=30, top_k=7
    )
    np.testing.assert_array_equal(found, brute_force(queries, documents, 20, short)[:, :7])
    exact, _ = adaptive_retrieval(queries, documents, short_dim=5, n_candidates=300)
    np.testing.assert_array_equal(exact, brute_force(queries, documents, 32)[:, :10])
    wide, _ = funnel_retrieval(queries, documents)  # the last of dims, 2048, is cut to 32
    assert wide.shape == (4, 10)


def test_cost_counts_the_first_search_over_all_documents():
    queries, documents = official_vectors()
    _, cost = adaptive_retrieval(queries, documents, short_dim=4, n_candidates=40)
    assert cost == 300 * 4 + 40 * 32
    _, cost = funnel_retrieval(queries, documents, first_dim=4, dims=(8, 32), n_kept=(50, 10))
    assert cost == 300 * 4 + 50 * 8 + 10 * 32
    few, cost = adaptive_retrieval(queries, documents[:6], short_dim=4)
    assert few.shape == (4, 6)
    assert cost == 6 * 4 + 6 * 32


def test_refusals():
    z, target = torch.zeros(2, 8), torch.zeros(2, dtype=torch.long)
    for sizes in ((2, 4), (4, 2, 8), (0, 8), (8, 8), ()):
        with pytest.raises(EtudeError, match="sizes must be positive, growing, the last one 8"):
            MatryoshkaHead(8, 3, sizes=sizes)
    with pytest.raises(EtudeError, match="weights must be 1 non-negative numbers"):
        MatryoshkaLoss(8, 3, weights=(1.0, 1.0))
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(EtudeError, match="weights must be"):
            MatryoshkaLoss(8, 3, sizes=(4, 8), weights=(1.0, weight))
    with pytest.raises(EtudeError, match="n_classes must be"):
        MatryoshkaLoss(8, 0)
    with pytest.raises(EtudeError, match="dim must be"):
        MatryoshkaLoss(0, 3)
    with pytest.raises(EtudeError, match=r"size must be one of \(8,\), got 4"):
        MatryoshkaLoss(8, 3).logits_at(z, 4)
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, D\) with D at least 8"):
        MatryoshkaLoss(8, 3).classify(z[:, :5])
    with pytest.raises(EtudeError, match="target must be"):
        MatryoshkaLoss(8, 3)(z, target[:1])
    queries, documents = official_vectors()
    with pytest.raises(EtudeError, match="queries must be as wide as documents, 32"):
        adaptive_retrieval(queries[:, :5], documents)
    with pytest.raises(EtudeError, match="documents must be"):
        adaptive_retrieval(queries, documents[:0])
    with pytest.raises(EtudeError, match="short_dim must be from 1 to long_dim = 32"):
        adaptive_retrieval(queries, documents, short_dim=64)
    with pytest.raises(EtudeError, match="top_k must be from 1 to 5"):
        adaptive_retrieval(queries, documents, n_candidates=5)
    with pytest.raises(EtudeError, match="n_kept must be 2 counts"):
        funnel_retrieval(queries, documents, dims=(8, 16), n_kept=(5,))
    with pytest.raises(EtudeError, match="n_kept must be positive and not growing"):
        funnel_retrieval(queries, documents, dims=(8, 16), n_kept=(5, 6))
    with pytest.raises(EtudeError, match="dims must be growing from first_dim = 8"):
        funnel_retrieval(queries, documents, dims=(4, 16), n_kept=(6, 5))
    with pytest.raises(EtudeError, match="first_dim must be"):
        funnel_retrieval(queries, documents, first_dim=0)
