"""The measuring parts of MUVERA's experiment against loops."""

import numpy as np

from etude.experiments.retrieval import muvera as experiment


def test_recall_and_needed_candidates_equal_the_loops(monkeypatch):
    generator = np.random.default_rng(0)
    order = generator.permuted(np.tile(np.arange(40), (6, 1)), axis=1)
    truth = generator.permuted(np.tile(np.arange(40), (6, 1)), axis=1)[:, :10]
    monkeypatch.setattr(experiment, "N_CANDIDATES", 7)

    def share(n):
        return np.mean([len(set(o[:n]) & set(t)) / 10 for o, t in zip(order, truth, strict=True)])

    assert np.isclose(experiment.recall(order, truth), share(7))
    n = experiment.needed(order, truth)
    assert share(n - 1) < 0.9 <= share(n)


def test_the_union_is_read_by_rank_then_by_similarity():
    best = np.array([[[0.9, 0.1, 0.5, 0.2], [0.0, 0.3, 0.2, 0.1]]])
    ranks = np.argsort(np.argsort(-best, axis=2), axis=2)
    by_rank, by_similarity, _ = experiment.union_orders(best, ranks)
    assert by_rank.tolist() == [[0, 1, 2, 3]]  # 0 and 1 lead a list each, 2 is second in both
    assert by_similarity.tolist() == [[0, 2, 1, 3]]
    fused = experiment.fused_orders(ranks)[0]
    assert fused.tolist() == [[2, 0, 1, 3]]  # 2/61 > 1/60 + 1/63 > 2/62


def test_corpora_repeat_and_have_unit_tokens():
    documents, queries = experiment.topic_mixtures(3, 100, 0.7, 0.7)
    again, _ = experiment.topic_mixtures(3, 100, 0.7, 0.7)
    np.testing.assert_array_equal(documents, again)
    np.testing.assert_allclose(np.linalg.norm(documents, axis=2), 1, rtol=1e-5)
    assert queries.shape == (300, 8, 64)
    best, ranks = experiment.token_ranks(documents, queries[:2])
    slow = np.einsum("qtd,nsd->qtns", queries[:2], documents).max(3)
    np.testing.assert_allclose(best, slow, atol=1e-5)
    assert (np.sort(ranks, axis=2) == np.arange(2000)).all()
    assert (np.take_along_axis(best, ranks.argmin(2)[..., None], 2)[..., 0] == best.max(2)).all()
