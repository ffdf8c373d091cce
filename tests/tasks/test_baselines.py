"""Baselines of the tasks, and what the tasks measure, against loops and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import average_precision_score, f1_score

from etude.core import EtudeError
from etude.tasks import measures
from etude.tasks.baselines import ClassNames, LinearDiscriminant, NearestMean
from etude.tasks.objectives import ArcFace, BinaryCrossEntropy, CrossEntropy, Prototypical, Triplet
from etude.tasks.train import best_threshold


def test_multi_label_measures_against_scikit_learn():
    generator = np.random.default_rng(5)
    scores, positives = generator.normal(size=(60, 4)), generator.random((60, 4)) < 0.4
    found = measures.multi_label(scores, positives, 0.3)
    assert found["micro_f1"] == pytest.approx(f1_score(positives, scores > 0.3, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(positives, scores > 0.3, average="macro"))
    tries = [measures.multi_label(scores, positives, t)["micro_f1"] for t in np.unique(scores)]
    chosen = best_threshold(scores, positives)
    if not chosen["relative"][0]:
        best = measures.multi_label(scores, positives, float(chosen["threshold"][0]))
        assert best["micro_f1"] >= max(tries)
    offset = generator.normal(0, 50, (60, 1))
    apart = np.where(positives, 3.0, 0.0)
    same_count = positives[:, :1] | True
    assert best_threshold(apart + offset * same_count, positives)["relative"][0]


def test_mean_average_precision_against_scikit_learn_and_a_perfect_clustering():
    generator = np.random.default_rng(6)
    vectors, labels = generator.normal(size=(30, 4)), generator.integers(0, 3, 30)
    each = []
    for row in range(30):
        others = np.arange(30) != row
        each.append(
            average_precision_score(labels[others] == labels[row], vectors[others] @ vectors[row])
        )
    found = measures.mean_average_precision(vectors, labels)
    assert found == pytest.approx(np.mean(each))
    first = measures.mean_average_precision(vectors, labels, 10)
    assert first == pytest.approx(np.mean(each[:10]))
    apart = np.eye(4)[labels] + generator.normal(0, 0.01, (30, 4))
    assert set(measures.retrieval(apart, labels).values()) == {1.0}


def test_baseline_objectives_by_loops():
    generator = torch.Generator().manual_seed(0)
    e = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(12) % 3
    unit = torch.nn.functional.normalize(e, dim=1)
    hard = []
    for a in range(12):
        d = [float((unit[a] - unit[b]).square().sum()) for b in range(12)]
        farthest = max(d[b] for b in range(12) if y[b] == y[a] and b != a)
        nearest = min(d[b] for b in range(12) if y[b] != y[a])
        hard.append(max(0.0, farthest - nearest + 0.2))
    found = Triplet(5, 3, margin=0.2, mining="hard")(e, y)
    assert float(found) == pytest.approx(np.mean(hard))
    plain = ArcFace(5, 3, margin=0.0, scale=8.0).double()
    wanted = torch.nn.functional.cross_entropy(8 * plain.cosines(e), y)
    torch.testing.assert_close(plain(e, y), wanted)
    torch.testing.assert_close(plain.classify(e), 8 * plain.cosines(e))
    curved = ArcFace(5, 3, margin=0.3, scale=8.0).double()
    cosines = curved.cosines(e).detach().numpy()
    losses = []
    for row in range(12):
        own = cosines[row].copy()
        k = int(y[row])
        if np.arccos(own[k]) + 0.3 <= np.pi:
            own[k] = np.cos(np.arccos(own[k]) + 0.3)
        else:
            own[k] -= 0.3 * np.sin(0.3)
        losses.append(np.log(np.exp(8 * own).sum()) - 8 * own[k])
    assert float(curved(e, y).detach()) == pytest.approx(np.mean(losses))
    logits = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(y, 3).bool()
    for smoothing in (0.0, 0.1):
        loss = CrossEntropy(smoothing=smoothing)
        torch.testing.assert_close(loss(logits, y), loss(logits, positives=one_hot))
    p = logits.sigmoid()
    wanted = -(torch.where(one_hot, p, 1 - p)).log().sum(dim=1).mean()
    torch.testing.assert_close(BinaryCrossEntropy()(logits, one_hot), wanted)
    means = torch.stack([unit[:6][y[:6] == k].mean(dim=0) for k in range(3)])
    own = -10 * torch.cdist(unit[6:], means).square()
    wanted = torch.nn.functional.cross_entropy(own, y[6:])
    torch.testing.assert_close(Prototypical(5, 3)(e, y), wanted)
    with pytest.raises(EtudeError, match="mining must be"):
        Triplet(5, 3, mining="soft")


def test_baseline_heads_by_hand():
    x = np.array([[0.0, 1], [0, 3], [4, 0], [8, 0]], dtype=np.float32)
    y = np.array([0, 0, 2, 2])
    near = NearestMean(center=False).fit(x, y)
    assert near.logits(np.array([[1.0, 1], [5, 0]])).argmax(axis=1).tolist() == [0, 2]
    turned = NearestMean(distance="cosine", center=False).fit(x, y)
    far = np.array([[1.0, 40], [0.3, 0.1]])
    assert turned.logits(far).argmax(axis=1).tolist() == [0, 2]
    y3 = np.arange(240) % 3
    x3 = np.random.default_rng(0).normal(0, 0.3, (240, 6)) + 3 * np.eye(6)[y3]
    for rows in (y3 >= 0, y3 < 2):
        ours = LinearDiscriminant(shrinkage=0.1).fit(x3[rows], y3[rows])
        oracle = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(x3[rows], y3[rows])
        probs = torch.from_numpy(ours.logits(x3[rows])).softmax(dim=1)
        np.testing.assert_allclose(probs, oracle.predict_proba(x3[rows]), atol=1e-4)
    with pytest.raises(EtudeError, match="shrinkage must be"):
        LinearDiscriminant(shrinkage=2.0)
    with pytest.raises(EtudeError, match="wording must be"):
        ClassNames(["a"], wording="no place")
