"""Structural labels: votes, distinct words, rounds, attributes; and the student they train."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch

from etude.core import EtudeError, check_names, get_state, set_state
from etude.heads.self_structural_alignment import (
    S3A,
    _assign,
    _described,
    _votes,
    cvpr_align,
)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def world(seed: int, n_words: int = 40, spread: float = 0.5, off: float = 0.5) -> tuple:
    """Words 0..4 name the five classes; their near synonyms and other words fill the vocabulary."""
    generator = np.random.default_rng(seed)
    centers = unit(generator.normal(size=(5, 12)))
    y = np.arange(150) % 5
    x = unit(centers[y] + spread * generator.normal(size=(150, 12)) / np.sqrt(12) * 1.5)
    near = centers[np.arange(n_words - 5) % 5]
    words = np.concatenate([centers, near + 1.6 * off * generator.normal(size=near.shape)])
    words[:5] += 0.3 * off * generator.normal(size=(5, 12))
    return x, unit(words), y


def test_votes_are_counts_over_the_size_of_the_cluster() -> None:
    generator = np.random.default_rng(0)
    clusters = np.concatenate([[0, 1, 2, 3], generator.integers(4, size=30)])
    top = np.argsort(generator.normal(size=(34, 7)), axis=1)[:, :3]
    expected = [
        [sum(w in top[i] for i in range(34) if clusters[i] == c) / sum(clusters == c)
         for w in range(7)]
        for c in range(4)
    ]  # fmt: skip
    found = _votes(clusters, top, 7)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    np.testing.assert_allclose(found.sum(axis=1), 3)


def test_assignment_is_the_best_of_all_and_gives_distinct_words() -> None:
    scores = np.random.default_rng(1).random((3, 6))
    best = max(permutations(range(6), 3), key=lambda p: sum(scores[c, w] for c, w in enumerate(p)))
    assert tuple(_assign(scores)) == best
    assert tuple(_assign(np.array([[0.9, 0.8, 0], [0.9, 0.1, 0]]))) == (1, 0)


def test_a_cluster_an_image_and_room_for_all_is_the_nearest_word() -> None:
    """With one cluster an image, and no two images that want one word."""
    words = np.random.default_rng(2).normal(size=(30, 8))
    x = words[[3, 17, 8, 21, 0]] + 0.1
    labels = cvpr_align(x, words, n_clusters=5)
    np.testing.assert_array_equal(labels, (unit(x) @ unit(words).T).argmax(axis=1))


def test_one_round_is_the_loops() -> None:
    """Clusters so apart that k-means must find them; then (1), the assignment and (2)."""
    x, words, y = world(3, spread=0.1)
    similarity = x @ words.T
    first = [int(np.argmax(row)) for row in similarity]
    F = [[sum(first[i] == w for i in range(150) if y[i] == c) / 30 for w in range(40)]
         for c in range(5)]  # fmt: skip
    chosen = sorted(_assign(np.array(F)).tolist())
    expected = [max(chosen, key=lambda w: similarity[i, w]) for i in range(150)]
    np.testing.assert_array_equal(cvpr_align(x, words, n_clusters=5, n_rounds=1), expected)


def test_release() -> None:
    """The release (c4c236d, ipynb/CVPR-algo.ipynb), k = 1, three rounds, in float64.

    Inputs: ``world(4, spread=1.2, off=0.8)`` and its true classes as the first clusters. The words
    that its voting, assignment and re-assignment give, and how many rows each gets, are ours.
    """
    x, words, clusters = world(4, spread=1.2, off=0.8)
    labels = cvpr_align(x, words, n_clusters=5, clusters=10 * clusters - 3)
    found, counts = np.unique(labels, return_counts=True)
    assert found.tolist() == [0, 1, 3, 4, 13]
    assert counts.tolist() == [27, 33, 32, 37, 21]


def test_where_structure_is_clear_it_returns_the_true_names_and_only_them() -> None:
    gains = []
    for seed in range(5):
        x, words, y = world(seed)
        labels = cvpr_align(x, words, n_clusters=5)
        assert len(np.unique(labels)) <= 5
        zero_shot = (x @ words.T).argmax(axis=1)
        assert len(np.unique(zero_shot)) > 5
        gains.append((labels == y).mean() - (zero_shot == y).mean())
    assert np.mean(gains) > 0.1


def test_attributes_vote_and_a_long_list_does_not_win() -> None:
    """(3) in loops, and that repeating a word's attributes changes nothing."""
    x, words, y = world(5)
    generator = np.random.default_rng(5)
    owner = np.repeat(np.arange(40), 3)
    attributes = unit(words[owner] + 0.3 * generator.normal(size=(120, 12)))
    counts = generator.integers(1, 4, size=120)
    scores = _votes(y, np.argsort(-(x @ words.T), axis=1)[:, :1], 40)
    found = _described(x, y, scores, attributes, owner, counts, 3)
    for c in range(5):
        candidates = sorted(range(40), key=lambda w: -scores[c, w])[:3]
        own = [a for a in range(120) if owner[a] in candidates]
        expected = np.zeros(40)
        for i in np.flatnonzero(y == c):
            for a in sorted(own, key=lambda a: -float(x[i] @ attributes[a]))[:3]:
                share = counts[a] / sum(counts[b] for b in own if owner[b] == owner[a])
                expected[owner[a]] += share
        np.testing.assert_allclose(found[c], expected, atol=1e-12)
    labels = cvpr_align(
        x, words, n_clusters=5, attribute_embeddings=attributes, attribute_words=owner
    )
    assert len(np.unique(labels)) <= 5
    assert (labels == y).mean() > (((x @ words.T).argmax(axis=1)) == y).mean()


def test_scale_does_not_matter_and_the_seed_repeats() -> None:
    x, words, _ = world(6)
    labels = cvpr_align(x, words, n_clusters=5, seed=3)
    np.testing.assert_array_equal(cvpr_align(x * 5, words * 9, n_clusters=5, seed=3), labels)
    np.testing.assert_array_equal(cvpr_align(x, words, n_clusters=5, seed=3), labels)


def test_more_clusters_than_distinct_rows_and_equal_rows_are_possible() -> None:
    words = np.eye(6)
    labels = cvpr_align(np.repeat(words[:2], 4, axis=0), words, n_clusters=4)
    np.testing.assert_array_equal(labels, np.repeat([0, 1], 4))


def test_self_training_starts_at_zero_shot_and_gains() -> None:
    x, words, _ = world(0)
    still = S3A(words, n_clusters=5, n_epochs=0).fit(x)
    np.testing.assert_allclose(still.logits(x), 20 * x @ words.T, atol=1e-12)
    gains = []
    for seed in range(4):
        x, words, y = world(seed)
        trained = S3A(words, n_clusters=5, n_epochs=8, lr=3e-3).fit(x)
        zero_shot = (x @ words.T).argmax(axis=1)
        gains.append((trained.logits(x).argmax(axis=1) == y).mean() - (zero_shot == y).mean())
    assert np.mean(gains) > 0.03


def test_one_step_of_self_training_is_the_loops() -> None:
    """(4) and its gradient by differences; AdamW's first step is lr g / (|g| + 1e-8)."""
    x, words, _ = world(9, n_words=8)
    x = x[:20]
    model = S3A(
        words, n_clusters=5, n_epochs=1, lr=0.01, threshold=0.95, dropout=0.3, decay=(0.8, 0.99),
        seed=5,
    ).fit(x)  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(20, generator=generator).tolist()
    keep = (torch.rand(20, 12, generator=generator) >= 0.3).numpy()
    structural = cvpr_align(x, words, n_clusters=5, seed=5)
    np.testing.assert_array_equal(model.labels_, structural)
    p = np.exp(20 * x @ words.T)
    p /= p.sum(axis=1, keepdims=True)
    assert (p.max(axis=1) > 0.95).sum() == 8

    def loss(W: np.ndarray) -> float:
        taught, told = [], []
        for n, i in enumerate(order):
            z = W @ (x[i] * keep[n])
            scores = 20 * words @ (z / np.linalg.norm(z))
            log_p = scores - np.log(np.exp(scores).sum())
            if p[i].max() > 0.95:
                taught.append(-log_p[p[i].argmax()])
            told.append(-log_p[structural[i]])
        return float(np.mean(taught) + 0.25 * np.mean(told))

    expected = np.eye(12)
    for a in range(12):
        for b in range(12):
            step = np.zeros((12, 12))
            step[a, b] = 1e-5
            g = (loss(np.eye(12) + step) - loss(np.eye(12) - step)) / 2e-5
            expected[a, b] -= (1 - 0.8) * 0.01 * g / (abs(g) + 1e-8)
    np.testing.assert_allclose(model.weight_, expected, atol=1e-6)


def test_labels_are_voted_anew_from_the_first_ones_by_the_teacher() -> None:
    x, words, _ = world(11, spread=1.8, off=1.2)
    settings = {"n_clusters": 5, "lr": 0.03, "seed": 1}
    first = cvpr_align(x, words, n_clusters=5, seed=1)
    two = S3A(words, n_epochs=2, **settings).fit(x)
    np.testing.assert_array_equal(two.labels_, first)
    three = S3A(words, n_epochs=3, **settings).fit(x)
    seen = x @ two.weight_.T
    expected = cvpr_align(seen, words, n_clusters=5, clusters=first)
    np.testing.assert_array_equal(three.labels_, expected)
    assert (expected != first).any()
    assert (expected != cvpr_align(seen, words, n_clusters=5, seed=1)).any()


def test_first_labels_of_self_training_take_attributes() -> None:
    x, words, _ = world(5, spread=1.2, off=0.9)
    owner = np.repeat(np.arange(40), 3)
    noise = np.random.default_rng(5).normal(size=(120, 12))
    given = {
        "attribute_embeddings": unit(words[owner] + 0.5 * noise), "attribute_words": owner,
        "attribute_counts": 1 + np.arange(120) % 3,
    }  # fmt: skip
    expected = cvpr_align(x, words, n_clusters=5, **given)
    assert (expected != cvpr_align(x, words, n_clusters=5)).any()
    for n_epochs in (0, 1):
        model = S3A(words, n_clusters=5, n_epochs=n_epochs, **given).fit(x)
        np.testing.assert_array_equal(model.labels_, expected)


def test_state_rebuilds_and_names_are_known() -> None:
    x, words, _ = world(7)
    model, copy = (S3A(words, n_clusters=5, n_epochs=2) for _ in range(2))
    set_state(copy, get_state(model.fit(x)))
    np.testing.assert_array_equal(copy.logits(x), model.logits(x))
    for call in (cvpr_align, S3A, S3A.fit, S3A.logits):
        check_names(call)


def test_refusals() -> None:
    x, words, _ = world(8)
    with pytest.raises(EtudeError, match=r"n_clusters must be in 1\.\.40"):
        cvpr_align(x, words, n_clusters=41)
    with pytest.raises(EtudeError, match=r"n_votes must be in 1\.\.40"):
        cvpr_align(x, words, n_votes=0)
    with pytest.raises(EtudeError, match="n_rounds must be at least 1"):
        cvpr_align(x, words, n_rounds=0)
    with pytest.raises(EtudeError, match="attribute_words must be"):
        cvpr_align(x, words, n_clusters=5, attribute_embeddings=words)
    with pytest.raises(EtudeError, match=r"clusters must be \(N,\), one a row"):
        cvpr_align(x, words, n_clusters=5, clusters=np.zeros(3))
    with pytest.raises(EtudeError, match="features must be finite, no row zero"):
        cvpr_align(x * 0, words)
    with pytest.raises(EtudeError, match="threshold must be in"):
        S3A(words, threshold=2.0)
    with pytest.raises(EtudeError, match="call fit first"):
        S3A(words).logits(x)
