"""BiDR: the quantizer's equations and the walk over queries; its index has a file of its own.

`test_numbers_of_the_released_code` holds what microsoft/BiDR at cc21c66 (model/model.py,
`ContrasPQ` and the loss "multi_ce") gave for the inputs drawn there, in float64, without a
rotation, because in the last term the release compares unrotated vectors; agreement to 1e-12.
"""

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.retrieval import ContrastiveProductQuantizer, locality_centric_batches


def quantizer(dim=12, n_parts=3, n_centroids=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=dtype))[0]
    rows = torch.randn(n_parts, n_centroids, dim // n_parts, generator=generator, dtype=dtype)
    return ContrastiveProductQuantizer(
        dim, n_parts=n_parts, n_centroids=n_centroids, rotation=turn, codebook=rows
    )


def normal(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------ quantizer


def test_probabilities_and_quantized_vectors_equal_the_loops():
    model, x = quantizer(), normal(4, 12)
    probs, quantized = model.probs(x), model(x)
    for b in range(4):
        v = (model.rotation @ x[b]).reshape(3, 4)
        for p in range(3):
            far = torch.stack([((v[p] - c) ** 2).sum() for c in model.codebook[p]])
            torch.testing.assert_close(probs[b, p], torch.exp(-far) / torch.exp(-far).sum())
            assert model.codes(x)[b, p] == far.argmin()
            torch.testing.assert_close(
                quantized[b, 4 * p : 4 * p + 4], model.codebook[p, far.argmin()]
            )


def test_as_many_rows_as_distinct_parts_lose_nothing():
    x = normal(5, 12)
    parts = x.reshape(5, 3, 4).transpose(0, 1)
    model = ContrastiveProductQuantizer(12, n_parts=3, n_centroids=5, codebook=parts).double()
    torch.testing.assert_close(model(x), x)


def test_the_straight_through_gradient_is_that_of_the_soft_assignment():
    model, x, weight = quantizer(), normal(4, 12).requires_grad_(), normal(4, 12, seed=2)
    (model(x) * weight).sum().backward()
    hard_x, hard_rows = x.grad.clone(), model.codebook.grad.clone()
    x.grad = model.codebook.grad = None
    soft = torch.einsum("bpk,pkd->bpd", model.probs(x), model.codebook).flatten(1)
    (soft * weight).sum().backward()
    torch.testing.assert_close(hard_x, x.grad)
    assert not torch.allclose(hard_rows, model.codebook.grad)  # it sees the hard code


def test_loss_equals_the_loop_and_masks_known_positives():
    model, q, d = quantizer(), normal(3, 12), normal(6, 12, seed=3)
    known = torch.zeros(3, 6, dtype=torch.bool)
    known[0, 4] = known[1, 1] = True  # a further positive, and the query's own
    quantized, expected = model(d), 0.0
    for b in range(3):
        keep = [m for m in range(6) if m == b or not known[b, m]]
        for left, right in ((q[b], d), (model.rotation @ q[b], quantized)):
            scores = torch.stack([left @ right[m] for m in keep])
            expected += (scores.logsumexp(0) - scores[keep.index(b)]) / 3
    error = sum(((model.rotation @ d[m] - quantized[m]) ** 2).sum() for m in range(6)) / 6
    found = model.loss(q, d, known=known, error_weight=0.25)
    torch.testing.assert_close(found, expected + 0.25 * error)
    assert model.loss(q, d) > model.loss(q, d, known=known)


def test_gradients_of_the_soft_parts_by_differences():
    model, x = quantizer(), normal(2, 12).requires_grad_()
    assert torch.autograd.gradcheck(model.probs, (x,))
    q = normal(2, 12, seed=5).requires_grad_()  # codes do not depend on the queries
    assert torch.autograd.gradcheck(lambda q: model.loss(q, x.detach()), (q,))


def test_the_rotation_stays_as_given_unless_it_is_to_be_trained():
    assert not quantizer().rotation.requires_grad
    free = ContrastiveProductQuantizer(4, n_parts=2, n_centroids=2, train_rotation=True)
    assert free.rotation.requires_grad
    assert (free.codebook.abs() <= 0.1).all()


def test_numbers_of_the_released_code():
    generator = np.random.default_rng(61)
    rows, q, d = (torch.tensor(generator.standard_normal(s)) for s in ((4, 6, 3), (3, 12), (6, 12)))
    model = ContrastiveProductQuantizer(12, n_parts=4, n_centroids=6, codebook=rows).double()
    d.requires_grad_()
    total = (model(d) * torch.arange(12)).sum()
    np.testing.assert_allclose(total.item(), -66.79653911546058, rtol=1e-12)
    known = torch.zeros(3, 6, dtype=torch.bool)
    known[0, 4] = True
    loss = model.loss(q, d, known=known, error_weight=0.0)
    np.testing.assert_allclose(loss.item(), 4.859346670446333, rtol=1e-12)
    loss.backward()
    np.testing.assert_allclose(d.grad.abs().sum().item(), 17.54065265344085, rtol=1e-12)
    rows_grad = model.codebook.grad.abs().sum().item()
    np.testing.assert_allclose(rows_grad, 11.862125058790943, rtol=1e-12)
    whole = model.loss(q, d, known=known, error_weight=1.0).item()
    np.testing.assert_allclose(whole - loss.item(), 8.740500323197665, rtol=1e-12)


# ------------------------------------------------------------------ batches


def ranked(n_queries=40, n_documents=100, depth=60, seed=0):
    generator = np.random.default_rng(seed)
    ranking = generator.permuted(np.tile(np.arange(n_documents), (n_queries, 1)), axis=1)
    return ranking[:, :depth], [[n, n + 50] for n in range(n_queries)]


@pytest.mark.parametrize("walk", ["random_walk", "snowball"])
def test_an_epoch_takes_every_query_once_with_its_own_and_hard_negatives(walk):
    ranking, positives = ranked()
    batches = list(locality_centric_batches(
        ranking, positives, batch_size=16, n_documents=100, n_negatives=3, hard=(0, 30),
        links=(30, 60), walk=walk,
    ))  # fmt: skip
    assert [len(queries) for queries, _, _ in batches] == [16, 16, 8]
    assert sorted(np.concatenate([b[0] for b in batches])) == list(range(40))
    for queries, own, negatives in batches:
        for query, mine, others in zip(queries, own, negatives, strict=True):
            assert mine in positives[query]
            assert len(others) == 3
            assert not set(others) & set(positives[query])
    share = [d in ranking[q, :30] for b in batches for q, ds in zip(b[0], b[2], strict=True)
             for d in ds]  # fmt: skip
    assert np.mean(share) > 0.9


def test_no_document_of_a_batch_is_drawn_as_a_hard_negative_again():
    ranking = np.tile(np.arange(50), (10, 1))  # all queries would draw from the same documents
    positives = [[q, 100 + q] for q in range(10)]
    (batch,) = locality_centric_batches(
        ranking, positives, batch_size=10, n_documents=10**6, n_negatives=3, hard=(0, 50)
    )
    assert len(np.unique(batch[2])) == 30
    for n in range(10):
        assert not set(batch[2][n]) & set(batch[1][:n])


def test_the_walk_goes_where_the_links_lead():
    # The only hard negative of query n is document n, which only query n + 1 links to. Rank 0
    # is hard, rank 1 links, so a batch must run upward from wherever it starts.
    n = 30
    ranking = np.stack([np.arange(n), (np.arange(n) - 1) % n], axis=1)
    positives = [[100 + q] for q in range(n)]
    queries, _, negatives = next(iter(locality_centric_batches(
        ranking, positives, batch_size=10, n_documents=200, hard=(0, 1), links=(1, 2)
    )))  # fmt: skip
    np.testing.assert_array_equal(np.diff(queries) % n, 1)
    np.testing.assert_array_equal(negatives[:, 0], queries)


def test_random_walk_takes_the_last_and_snowball_the_first():
    # Query 0 leads to 1 and 2 (in this order), each of which leads to two of its own.
    children = {0: (1, 2), 1: (3, 4), 2: (5, 6)}
    parent = {child: q for q, pair in children.items() for child in pair}
    ranking = np.array([[q, parent.get(q, 60 + q)] for q in range(7)])
    positives = [[100 + q] for q in range(7)]
    seen = {}
    for walk in ("random_walk", "snowball"):
        for seed in range(60):
            queries = next(iter(locality_centric_batches(
                ranking, positives, batch_size=7, n_documents=200, hard=(0, 1), links=(1, 2),
                walk=walk, seed=seed,
            )))[0].tolist()  # fmt: skip
            if queries[0] == 0:
                seen[walk] = queries
    assert seen["random_walk"] == [0, 2, 6, 5, 1, 4, 3]
    assert seen["snowball"] == [0, 1, 2, 3, 4, 5, 6]


def test_too_few_hard_negatives_are_filled_at_random_and_bad_arguments_refused():
    ranking, positives = np.array([[7, 3], [3, 7]]), [[7], [3]]
    queries, _, negatives = next(iter(locality_centric_batches(
        ranking, positives, batch_size=2, n_documents=1000, n_negatives=4, hard=(0, 2)
    )))  # fmt: skip
    assert negatives.shape == (2, 4)
    assert len(queries) == 2
    with pytest.raises(EtudeError, match="walk must be random_walk or snowball"):
        next(locality_centric_batches(ranking, positives, batch_size=2, n_documents=9, walk="no"))
    with pytest.raises(EtudeError, match="positives must be one list a query"):
        next(locality_centric_batches(ranking, [[1]], batch_size=2, n_documents=9))
