"""The measuring parts of BiDR's experiment, small."""

import numpy as np
import pytest
import torch

from etude.experiments.retrieval import bidr as experiment


@pytest.fixture
def small(monkeypatch):
    sizes = {"N_DOCUMENTS": 1200, "N_TRAIN": 192, "N_VALIDATION": 40, "N_TEST": 80, "N_STEPS": 6,
             "N_SAMPLE": 500, "SIZES": (8,), "N_CANDIDATES": 60}  # fmt: skip
    for name, value in sizes.items():
        monkeypatch.setattr(experiment, name, value)


def test_opq_is_a_rotation_and_errs_less_than_its_start(small):
    vectors = torch.randn(500, 32, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.linspace(2, 0.1, 32)
    )
    errors = []
    for n_rounds in (0, 15):
        found = experiment.opq(vectors, 8, 0, n_rounds=n_rounds)
        torch.testing.assert_close(
            found.rotation @ found.rotation.T, torch.eye(32), atol=1e-4, rtol=0
        )
        with torch.no_grad():
            errors.append(float(((found.rotate(vectors) - found(vectors)) ** 2).sum(1).mean()))
    assert errors[1] < 0.9 * errors[0]


def test_orders_by_codes_equal_the_loop_and_recall_counts_queries(small):
    corpus = experiment.topic_queries(0)
    encoder = experiment.Encoder(0)
    q, d = experiment.embed(corpus, encoder, corpus.queries[:5])
    model = experiment.opq(torch.from_numpy(d), 8, 0)
    found = experiment.by_codes(corpus, encoder, model, corpus.queries[:5])
    with torch.no_grad():
        scores = (q @ model.rotation.numpy().T) @ model(torch.from_numpy(d)).numpy().T
    for row, score in zip(found, scores, strict=True):
        np.testing.assert_allclose(score[row], np.sort(score)[::-1][:10], rtol=1e-4, atol=1e-5)
    assert experiment.recall(np.array([[1, 2], [3, 4], [5, 6]]), np.array([2, 9, 5])) == 2 / 3


def test_local_and_shuffled_batches_hold_the_same_triplets(small):
    corpus = experiment.topic_queries(1)
    generator = np.random.default_rng(0)
    ranking = generator.permuted(np.tile(np.arange(1200), (192, 1)), axis=1)[:, :400]
    epochs = []
    for local in (True, False):
        batches = experiment.hard_batches(corpus, ranking, 0, local=local)
        parts = [next(batches) for _ in range(3)]
        whole = [np.concatenate(part) for part in zip(*parts, strict=True)]
        epochs.append(sorted(zip(whole[0], whole[1], whole[2][:, 0], strict=True)))
        assert (corpus.own[whole[0]] == whole[1]).all()
    assert epochs[0] == epochs[1]


def test_a_measurement_gives_the_cards_pair_first_and_repeats(small):
    first, second = experiment.measure(3), experiment.measure(3)
    settings = [(pair.setting, pair.baseline_name) for pair in first]
    assert settings == [
        ("8 bytes", "opq"), ("8 bytes", "cold_start"), ("after verification", "hard_negatives"),
        ("after verification", "random_negatives"),
    ]  # fmt: skip
    for one, other in zip(first, second, strict=True):
        assert (one.ours, one.baseline) == (other.ours, other.baseline)
        assert 0 <= one.ours <= 1
        assert one.metric == "recall_at_10"
