"""CRISP against slow loops, scikit-learn's k-means and the bounds that its means obey.

No official code was found.
"""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from etude.core import EtudeError
from etude.experiments.retrieval.crisp_multivector import topic_tokens
from etude.retrieval import (
    ClusteredMultiVector,
    chamfer_similarity,
    k_spacing,
    kmeans_tokens,
    tail_pruning,
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def ragged(*counts, width):
    return torch.arange(width) < torch.tensor(counts)[:, None]


def test_each_sequence_is_clustered_alone_as_scikit_learn_does():
    tokens, mask = normal(3, 12, 4), ragged(12, 9, 7, width=12)
    tokens[~mask] = 1e6  # padding must not enter
    means, real = kmeans_tokens(tokens, mask, budget=4, n_rounds=20)
    for b, n in enumerate((12, 9, 7)):
        x = tokens[b, :n].numpy()
        start = x[[c * n // 4 for c in range(4)]]
        want = KMeans(4, init=start, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(x)
        assert real[b].all()
        np.testing.assert_allclose(means[b].numpy(), want.cluster_centers_, rtol=1e-9)


def test_one_round_assigns_to_evenly_spaced_tokens_once():
    tokens = normal(1, 12, 4, seed=11)
    x, start = tokens[0], tokens[0, [0, 3, 6, 9]]
    own = ((x[:, None] - start) ** 2).sum(2).argmin(1)
    want = torch.stack([x[own == c].mean(0) for c in range(4)])
    means, _ = kmeans_tokens(tokens, budget=4, n_rounds=1)
    torch.testing.assert_close(means[0], want)
    model = ClusteredMultiVector(query_budget=4, n_rounds=1)
    torch.testing.assert_close(model.encode_queries(tokens)[0], means)
    assert not torch.allclose(means, kmeans_tokens(tokens, budget=4)[0])


def test_padding_anywhere_makes_no_difference():
    tokens = normal(1, 8, 3)
    mask = torch.tensor([[True, False, True, True, False, True, True, True]])
    packed = tokens[:, mask[0]]
    for select in (kmeans_tokens, k_spacing, tail_pruning):
        for one, other in zip(
            select(tokens, mask, budget=3), select(packed, budget=3), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_a_share_gives_each_sequence_of_a_batch_what_it_gets_alone():
    tokens, mask = normal(3, 12, 4), ragged(12, 5, 8, width=12)
    means, real = kmeans_tokens(tokens, mask, budget=0.5)
    for b, n in enumerate((12, 5, 8)):
        alone, kept = kmeans_tokens(tokens[b : b + 1, :n], budget=0.5)
        assert kept.shape[1] == -(-n // 2)
        assert real[b].sum() == kept.sum()
        torch.testing.assert_close(means[b][real[b]], alone[kept])


def test_a_budget_of_all_tokens_changes_nothing_even_with_equal_tokens():
    tokens = normal(2, 5, 3)
    tokens[0, 3] = tokens[0, 1]  # plain k-means would merge these two
    mask = ragged(5, 3, width=5)
    for budget in (5, 9, 1.0):
        means, real = kmeans_tokens(tokens, mask, budget=budget)
        torch.testing.assert_close(real, mask)
        torch.testing.assert_close(means[real], tokens[mask])
    model = ClusteredMultiVector(query_budget=5, document_budget=1.0)
    scores = model(tokens, tokens, query_mask=mask, document_mask=mask)
    plain = chamfer_similarity(tokens, tokens, query_mask=mask, document_mask=mask)
    torch.testing.assert_close(scores, plain)


def test_chamfer_is_the_sum_of_maxima():
    q, d = normal(2, 4, 3), normal(5, 6, 3, seed=1) - 3
    q_mask, d_mask = ragged(4, 2, width=4), ragged(6, 1, 3, 4, 5, width=6)
    found = chamfer_similarity(q, d, query_mask=q_mask, document_mask=d_mask)
    for i in range(2):
        for j in range(5):
            total = 0.0
            for s in range(int(q_mask[i].sum())):
                total += max(float(q[i, s] @ d[j, t]) for t in range(int(d_mask[j].sum())))
            assert found[i, j].item() == pytest.approx(total)


def test_clustering_documents_never_raises_a_score():
    queries, documents = normal(4, 3, 5), normal(6, 15, 5, seed=2)
    full = chamfer_similarity(queries, documents)
    for budget in (1, 3, 8, 0.5):
        means, real = kmeans_tokens(documents, budget=budget)
        scores = chamfer_similarity(queries, means, document_mask=real)
        assert (scores <= full + 1e-12).all()
        assert (scores < full - 1e-3).any()


def test_a_token_gets_its_mean_s_gradient_over_the_cluster_s_size():
    tokens = normal(1, 9, 3).requires_grad_()
    means, _ = kmeans_tokens(tokens, budget=3)
    weight = normal(1, 3, 3, seed=3)
    (means * weight).sum().backward()
    assert tokens.grad is not None
    far = ((tokens.detach()[0][:, None] - means.detach()[0]) ** 2).sum(2)
    own = far.argmin(1)
    size = torch.bincount(own, minlength=3)
    assert size.max() > 1
    torch.testing.assert_close(tokens.grad[0], weight[0, own] / size[own, None])


def test_gradients_through_the_whole_score():
    q, d = normal(2, 5, 3).requires_grad_(), normal(3, 6, 3, seed=4).requires_grad_()
    model = ClusteredMultiVector(query_budget=2, document_budget=3)
    assert torch.autograd.gradcheck(lambda q, d: model(q, d), (q, d))


def test_loss_against_loops():
    model = ClusteredMultiVector(query_budget=2, document_budget=2, temperature=0.7)
    q, d = normal(3, 4, 3), normal(3, 5, 3, seed=5)
    scores = model(q, d).numpy() / 0.7
    want = [np.log(np.exp(scores[i]).sum()) - scores[i, i] for i in range(3)]
    assert model.loss(q, d).item() == pytest.approx(np.mean(want))


def test_spacing_and_tail_keep_tokens():
    tokens, mask = normal(2, 12, 2), ragged(12, 6, width=12)
    kept, real = k_spacing(tokens, mask, budget=0.25)
    torch.testing.assert_close(kept[0], tokens[0, [0, 4, 8]])
    torch.testing.assert_close(kept[1, :2], tokens[1, [0, 3]])
    assert real.tolist() == [[True] * 3, [True, True, False]]
    kept, real = tail_pruning(tokens, mask, budget=4)
    torch.testing.assert_close(kept[0], tokens[0, 8:])
    torch.testing.assert_close(kept[1], tokens[1, 2:6])
    assert k_spacing(tokens[:, :6], budget=1 / 3)[0].shape[1] == 2


def test_equal_tokens_leave_clusters_empty_and_out():
    means, real = kmeans_tokens(torch.ones(1, 6, 2), budget=3)
    assert real.tolist() == [[True, False, False]]
    torch.testing.assert_close(means[0, 0], torch.ones(2))
    q = torch.tensor([[[-1.0, 0.0]]])  # an empty cluster must not answer with 0
    assert chamfer_similarity(q, means, document_mask=real).item() == -1


def test_a_cluster_that_ran_empty_stays_where_it_was():
    tokens = torch.tensor([5.0, 5, 5, 5, 1, 0.2]).reshape(1, 6, 1)  # it starts from 5, 5 and 1
    means, real = kmeans_tokens(tokens, budget=3)
    assert real.tolist() == [[True, False, True]]
    torch.testing.assert_close(means[0, [0, 2], 0], torch.tensor([5.0, 0.6]))


def test_the_selection_of_a_model_and_its_network():
    tokens = normal(2, 8, 3)
    for selection, select in (("spacing", k_spacing), ("tail", tail_pruning)):
        model = ClusteredMultiVector(
            network=torch.nn.Tanh(), selection=selection, query_budget=2, document_budget=3
        )
        torch.testing.assert_close(
            model.encode_queries(tokens)[0], select(tokens.tanh(), budget=2)[0]
        )
        torch.testing.assert_close(
            model.encode_documents(tokens)[0], select(tokens.tanh(), budget=3)[0]
        )
    plain = ClusteredMultiVector(selection="none", query_budget=2)
    torch.testing.assert_close(plain.encode_queries(tokens)[0], tokens)


def test_training_through_the_clusters_lowers_the_loss():
    model = ClusteredMultiVector(network=torch.nn.Linear(6, 4), query_budget=2, document_budget=2)
    with torch.no_grad():
        for seed, weight in enumerate(model.parameters()):
            weight.copy_(normal(*weight.shape, seed=seed))
    model.double()
    centers = normal(6, 1, 6, seed=7)
    q = centers + 0.3 * normal(6, 4, 6, seed=8)
    d = centers + 0.3 * normal(6, 7, 6, seed=9)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    before = model.loss(q, d).item()
    for _ in range(30):
        optimizer.zero_grad()
        model.loss(q, d).backward()
        optimizer.step()
    assert model.loss(q, d).item() < 0.5 * before


def test_a_query_asks_for_topics_of_its_document():
    queries, documents = topic_tokens(np.random.default_rng(0), 20)
    assert queries.shape == (20, 6)
    assert documents.shape == (20, 32)
    for q, d in zip(queries.numpy(), documents.numpy(), strict=True):
        asked, told = set(q[q < 200] // 4), set(d[d < 200] // 4)
        assert len(asked) == 3
        assert len(told) == 4
        assert asked <= told


X = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kmeans_tokens(torch.ones(3, 4), budget=2), r"tokens must be \(B, T, D\)"),
        (lambda: kmeans_tokens(X, budget=0), "budget must be a number of vectors from 1"),
        (lambda: k_spacing(X, budget=1.5), "budget must be a number of vectors from 1"),
        (lambda: kmeans_tokens(X, budget=2, n_rounds=0), "n_rounds must be at least 1"),
        (lambda: tail_pruning(X, torch.zeros(2, 3).bool(), budget=1), "at least one token"),
        (lambda: tail_pruning(X, torch.ones(2, 3), budget=1), "mask of tokens must be bool"),
        (lambda: chamfer_similarity(X, torch.ones(2, 3, 5)), "documents must be 4 wide"),
        (lambda: ClusteredMultiVector(selection="head"), "selection must be one of cluster"),
        (lambda: ClusteredMultiVector(query_budget=0.0), "query_budget must be a number"),
        (lambda: ClusteredMultiVector(temperature=0.0), "temperature must be positive"),
        (lambda: ClusteredMultiVector().loss(X, X[:1]), "documents must be 2 of them"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
