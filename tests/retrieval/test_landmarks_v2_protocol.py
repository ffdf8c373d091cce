"""The two measures of the landmarks protocol against loops, the release, and their edge cases.

Release: tensorflow/models at e4009b2, research/delf/.../google_landmarks_dataset/metrics.py.
Inputs: numpy default_rng(0); integers(0, 8, (40, 6)) / 8 as scores and random((40, 6)) < 0.12 as
labels for GlobalAveragePrecision; then integers(0, 30, (20, 12)) as rankings and
random((20, 30)) < 0.2, image 0 relevant to all, for MeanAveragePrecision with 9 predictions. Ours
were equal to the last bit.
"""

import numpy as np
import pytest

from etude.core import EtudeError
from etude.retrieval import (
    LandmarkProtocol,
    make_instance_benchmark,
    mean_average_precision_at_k,
    micro_average_precision,
)

GAP, MAP = 0.04339581986640811, 0.12033777399848829


def slow_gap(scores, positives):
    answers = sorted((-max(row), b, int(np.argmax(row))) for b, row in enumerate(scores))
    right, total = 0, 0.0
    answers = [answer for answer in answers if answer[0] < np.inf]
    for i, (_, b, label) in enumerate(answers, 1):
        if positives[b, label]:
            right += 1
            total += right / i
    return total / sum(row.any() for row in positives)


def slow_map(rankings, positives, k):
    values = []
    for ranking, relevant in zip(rankings, positives, strict=True):
        if not relevant.any():
            continue
        seen, right, total = set(), 0, 0.0
        for j, image in enumerate(ranking[:k], 1):
            if image >= 0 and relevant[image] and image not in seen:
                right += 1
                total += right / j
            seen.add(image)
        values.append(total / min(relevant.sum(), k))
    return np.mean(values)


def one_hot(classes, n):
    return np.array([[c == k for k in range(n)] for c in classes])


def test_same_as_the_release():
    rng = np.random.default_rng(0)
    scores, positives = rng.integers(0, 8, (40, 6)) / 8, rng.random((40, 6)) < 0.12
    assert micro_average_precision(scores, positives) == pytest.approx(GAP, rel=1e-14)
    rankings, relevant = rng.integers(0, 30, (20, 12)), rng.random((20, 30)) < 0.2
    relevant[:, 0] = True
    assert mean_average_precision_at_k(rankings, relevant, k=9) == pytest.approx(MAP, rel=1e-14)


@pytest.mark.parametrize("seed", range(5))
def test_both_measures_are_those_of_the_loops(seed):
    rng = np.random.default_rng(seed)
    scores, positives = rng.integers(0, 4, (30, 5)) / 4, rng.random((30, 5)) < 0.15
    scores[:5] = -np.inf  # five images without an answer
    want = slow_gap(scores, positives)
    assert want > 0
    assert micro_average_precision(scores, positives) == pytest.approx(want)
    rankings, relevant = rng.integers(-1, 20, (15, 10)), rng.random((15, 20)) < 0.15
    for k in (1, 4, 100):
        want = slow_map(rankings, relevant, k)
        assert mean_average_precision_at_k(rankings, relevant, k=k) == pytest.approx(want)


def test_gap_is_one_only_where_right_answers_lead_all_others():
    positives = one_hot([0, 1, 2, None, None], 3)  # two distractors
    scores = np.array([[0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.7], [0.6, 0, 0], [0, 0.5, 0]])
    assert micro_average_precision(scores, positives) == 1
    scores[3, 0] = 0.85  # a confident answer to a distractor
    assert micro_average_precision(scores, positives) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_wrong_answers_below_the_last_right_one_are_free_and_a_right_one_pays():
    positives = one_hot([0, 1, 2, None], 3)
    scores = np.full((4, 3), -np.inf)
    scores[0, 0], scores[1, 1] = 0.9, 0.8
    before = micro_average_precision(scores, positives)
    assert before == pytest.approx(2 / 3)
    scores[3, 0] = 0.1
    assert micro_average_precision(scores, positives) == before
    scores[2, 2] = 0.05
    assert micro_average_precision(scores, positives) == pytest.approx(before + 0.75 / 3)
    scores[2] = [0.05, -np.inf, -np.inf]  # wrong, for an image of an instance: (M - 1) / M at most
    assert micro_average_precision(scores, positives) == before


def test_gap_does_not_change_under_a_rising_map_of_confidence():
    rng = np.random.default_rng(1)
    scores, positives = rng.normal(size=(50, 4)), rng.random((50, 4)) < 0.2
    want = micro_average_precision(scores, positives)
    assert micro_average_precision(np.exp(3 * scores), positives) == want
    assert micro_average_precision(-scores, positives) != want


def test_an_image_may_have_several_labels():
    positives = np.array([[True, True, False], [False, False, True]])
    for best in (0, 1):
        scores = np.zeros((2, 3))
        scores[0, best], scores[1, 2] = 2, 1
        assert micro_average_precision(scores, positives) == 1


def test_perfect_retrieval_is_one_even_with_more_relevant_images_than_places():
    positives = np.ones((1, 150), dtype=bool)
    rankings = np.arange(150)[None]
    assert mean_average_precision_at_k(rankings, positives) == 1
    assert mean_average_precision_at_k(rankings[:, :6], positives) == 0.06  # six results alone
    twice = np.repeat(rankings, 2, axis=1)  # a repetition uses up a place
    want = sum((j // 2 + 1) / (j + 1) for j in range(0, 100, 2)) / 100
    assert mean_average_precision_at_k(twice, positives) == pytest.approx(want)


def test_the_correction_moves_confidence_and_no_label():
    rng = np.random.default_rng(2)
    known, labels = rng.normal(size=(12, 6)), np.arange(12) % 4
    queries, others = rng.normal(size=(9, 6)), rng.normal(size=(20, 6))
    scores = LandmarkProtocol(distractor_weight=0.0).recognize(known, labels, queries, others)
    aware = LandmarkProtocol(distractor_weight=0.5, n_neighbors=3).recognize(
        known, labels, queries, others
    )

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for b in range(9):
        near = sorted(cosine(queries[b], other) for other in others)[-3:]
        for c in range(4):
            best = max(cosine(queries[b], known[i]) for i in range(12) if labels[i] == c)
            assert scores[b, c] == pytest.approx(best)
            assert aware[b, c] == pytest.approx(best - 0.5 * sum(near) / 3)
    np.testing.assert_array_equal(aware.argmax(1), scores.argmax(1))


def test_the_run_on_separate_instances():
    known = np.repeat(np.eye(4)[:3], 2, axis=0)
    queries = np.concatenate([np.eye(4)[:3], [[0.9, 0.1, 0, 1.0]]])
    positives = one_hot([0, 1, 2, None], 3)
    labels = np.repeat(np.arange(3), 2)
    assert LandmarkProtocol().run(known, labels, queries, positives) == {
        "micro_average_precision": 1, "mean_average_precision": 1, "accuracy": 1,
    }  # fmt: skip
    further = np.append(known, [[0, 0, 0, 1]], axis=0), np.append(labels, 0)
    for k, want in ((1, 1), (100, (2 + (1 + 1 + 3 / 7) / 3) / 3)):
        found = LandmarkProtocol(k=k).run(*further, queries, positives)
        assert found["mean_average_precision"] == pytest.approx(want)
    queries[3] = [5, 0, 0, 0]  # a distractor as near as can be; queries before it win the tie
    tied = LandmarkProtocol().run(known, labels, queries[::-1], positives[::-1])
    assert tied["micro_average_precision"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    apart = np.array([[1.0, 0.01, 0, 0]])  # one distractor known
    aware = LandmarkProtocol(n_neighbors=1).run(
        known, labels, queries[::-1], positives[::-1], apart
    )
    assert aware["micro_average_precision"] > tied["micro_average_precision"]
    assert aware["accuracy"] == 1


def test_the_benchmark_is_long_tailed_mostly_distractors_and_repeats():
    images = np.random.default_rng(3).random((240, 4, 4))
    made = make_instance_benchmark(images, n_instances=20, n_largest=30, n_queries=10)
    counts = np.bincount(made.labels)
    assert counts.tolist() == [max(2, 30 // r) for r in range(1, 21)]
    assert made.images.shape == (counts.sum(), 8, 8)
    assert made.positives.sum() == 10
    assert made.positives.sum(1).max() == 1
    assert len(made.queries) == len(made.positives) == 200
    again = make_instance_benchmark(images, n_instances=20, n_largest=30, n_queries=10)
    for one, other in zip(made, again, strict=True):
        np.testing.assert_array_equal(one, other)
    views = make_instance_benchmark(images, n_instances=20, n_largest=30, n_queries=10, view_seed=1)
    np.testing.assert_array_equal(views.images, made.images)
    assert not np.array_equal(views.queries, made.queries)


def test_distractors_and_instances_share_no_source():
    sources = np.zeros((240, 4, 4))
    sources[:, 1, 1], sources[:, 2, 2] = 1, np.arange(1, 241) / 240  # which one, at any brightness
    made = make_instance_benchmark(
        sources, n_instances=20, n_queries=40, n_distractors=300, shift=0, noise=0.0
    )

    def shown(images):
        tiles = images.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4, 4)
        full = np.maximum(tiles[:, :, 1, 1], 1e-9)
        return np.rint(240 * tiles[:, :, 2, 2] / full).astype(int)  # 0 where hidden

    asked = made.positives.any(1)
    parts = [shown(x) for x in (made.images, made.queries[~asked], made.distractors)]
    for n, part in enumerate(parts):
        assert ((part == 0).sum(1) <= 1).all()
        assert (part == 0).any(1).mean() == pytest.approx(0.5, abs=0.1)
        for other in parts[:n]:
            assert set(part.ravel()) & set(other.ravel()) == {0}
    tiles = [set(parts[0][made.labels == c].ravel()) - {0} for c in range(20)]
    assert all(len(of) <= 4 for of in tiles)
    assert not set.intersection(*tiles)
    for row, label in zip(shown(made.queries[asked]), made.positives[asked], strict=True):
        assert set(row) - {0} <= tiles[int(label.argmax())]
    assert 0.3 < np.flatnonzero(asked).mean() / len(asked) < 0.7  # in no order


def test_views_of_an_instance_are_nearer_than_distractors():
    images = np.random.default_rng(4).random((240, 6, 6)) > 0.7
    made = make_instance_benchmark(images, n_instances=20, n_queries=40, noise=0.0)
    flat = np.abs(np.fft.fft2(made.queries - made.queries.mean((1, 2), keepdims=True)))
    known = np.abs(np.fft.fft2(made.images - made.images.mean((1, 2), keepdims=True)))
    found = LandmarkProtocol().run(  # magnitudes do not see the shift
        known.reshape(len(known), -1), made.labels, flat.reshape(len(flat), -1), made.positives
    )
    assert found["accuracy"] > 0.6
    assert found["micro_average_precision"] > 0.4


LABELS = np.array([[True, False]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: micro_average_precision(np.zeros(2), LABELS), r"scores must be \(B, K\)"),
        (lambda: micro_average_precision(np.full((1, 2), np.nan), LABELS), "free of NaN"),
        (lambda: micro_average_precision(np.zeros((1, 3)), LABELS), "positives must be of shape"),
        (lambda: micro_average_precision(np.zeros((1, 2)), ~LABELS & LABELS), "true at least once"),
        (lambda: micro_average_precision(np.zeros((1, 2)), 1.0 * LABELS), "bool"),
        (lambda: mean_average_precision_at_k(np.array([[2]]), LABELS), r"ids in -1\.\.1"),
        (lambda: mean_average_precision_at_k(np.array([[0.5]]), LABELS), "rankings must be integ"),
        (lambda: mean_average_precision_at_k(np.array([[0]]), LABELS, k=0), "k must be at least"),
        (lambda: LandmarkProtocol(n_neighbors=0), "n_neighbors must be at least 1"),
        (lambda: LandmarkProtocol(distractor_weight=-1.0), "distractor_weight must be at least 0"),
        (
            lambda: LandmarkProtocol().recognize(np.eye(2), np.array([0, -1]), np.eye(2)),
            "labels must be",
        ),
        (lambda: make_instance_benchmark(np.zeros((20, 4, 4))), "images must be at least 960"),
        (
            lambda: make_instance_benchmark(
                np.zeros((99, 4, 4)), n_instances=2, distractor_share=1.0
            ),
            "distractor_share must be in",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
