"""Tasks: splits, measures against oracles, wiring, equal starts of both arms, round trips."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Sklearn
from sklearn.metrics import log_loss, roc_auc_score

from etude.core import EtudeError
from etude.lab.data import load_dataset
from etude.tasks import TASKS, arm_of, arms, get_task, measures, restore
from etude.tasks.base import Dataset, split_rows
from etude.tasks.baselines import KNearestNeighbors, LogisticRegression, MeanToken, TruncatedPCA
from etude.tasks.facts import describe, patch_tokens, scaling
from etude.tasks.search import exact
from etude.tasks.training import n_steps_for, optimize
from etude.tasks.wire import arguments, missing


@pytest.fixture(scope="module")
def wine():
    return load_dataset("wine")


def test_a_split_is_stratified_disjoint_complete_and_of_the_seed(wine):
    split = split_rows(wine, 0)
    parts = [split.train, split.validation, split.test]
    assert sorted(np.concatenate(parts)) == list(range(len(wine.x)))
    for k in range(3):
        shares = [np.mean(wine.y[part] == k) for part in parts]
        assert max(shares) - min(shares) < 0.05
    again, other = split_rows(wine, 0), split_rows(wine, 1)
    np.testing.assert_array_equal(split.test, again.test)
    assert not np.array_equal(split.test, other.test)


def test_a_class_with_too_few_rows_is_refused():
    data = Dataset(
        name="tiny", x=np.zeros((12, 2), np.float32), y=np.array([0] * 10 + [1] * 2),
        classes=("many", "few"),
    )  # fmt: skip
    with pytest.raises(EtudeError, match=r"tiny: class 'few' has 2 row\(s\)"):
        split_rows(data, 0)


def test_classification_measures_against_scikit_learn():
    generator = np.random.default_rng(0)
    logits, target = generator.normal(size=(50, 4)), generator.integers(0, 4, 50)
    found = measures.classification(logits, target)
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(log_loss(target, probs, labels=range(4)))
    assert found["accuracy"] == np.mean(logits.argmax(axis=1) == target)
    assert np.isfinite(measures.classification(logits * 1e4, target)["log_loss"])


def test_detection_measures_by_counting():
    generator = np.random.default_rng(1)
    is_outlier = np.arange(100) < 30
    scores = generator.normal(size=100) + is_outlier
    found = measures.detection(scores, is_outlier)
    pairs = scores[is_outlier][:, None] > scores[~is_outlier][None, :]
    assert found["auroc"] == pytest.approx(pairs.mean())
    assert found["auroc"] == pytest.approx(roc_auc_score(is_outlier, scores))
    assert found["tnr_at_95_tpr"] == pytest.approx(1 - found["fpr_at_95_tpr"])
    perfect = measures.detection(is_outlier.astype(float), is_outlier)
    assert (perfect["auroc"], perfect["fpr_at_95_tpr"]) == (1, 0)


def test_neighbors_in_blocks_equal_a_full_sort():
    generator = np.random.default_rng(2)
    queries, documents = generator.normal(size=(7, 5)), generator.normal(size=(40, 5))
    oracle = np.argsort(-(queries @ documents.T), axis=1)[:, :10]
    np.testing.assert_array_equal(measures.neighbors(queries, documents, 10), oracle)


def test_recall_at_1_leaves_the_row_itself_out():
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0.02]])
    assert measures.recall_at_1(embeddings, np.array([0, 0, 1, 1, 2])) == pytest.approx(4 / 5)


def test_exact_search_is_the_chamfer_score_by_loops():
    generator = np.random.default_rng(3)
    queries, documents = generator.normal(size=(3, 4, 5)), generator.normal(size=(20, 6, 5))
    for row, query in enumerate(queries):
        scores = [sum(max(float(q @ d) for d in doc) for q in query) for doc in documents]
        assert list(exact(queries, documents, 5)[row]) == list(np.argsort(scores)[::-1][:5])


def test_wiring_hands_over_what_is_asked_and_says_what_lacks():
    def method(dim, *, temperature=1.0):
        return dim, temperature

    facts = {"dim": 3, "n_classes": 5}
    assert arguments(method, facts) == {"dim": 3}
    assert arguments(method, facts, {"temperature": 2.0}) == {"dim": 3, "temperature": 2.0}
    assert missing(method, {}) == ["dim"]
    with pytest.raises(EtudeError, match="has no parameter 'heat'"):
        arguments(method, facts, {"heat": 1})
    with pytest.raises(EtudeError, match="asks for dim; this task has n_classes"):
        arguments(method, {"n_classes": 5})


def test_logistic_regression_keeps_scikit_learns_answer(wine):
    scaled = (wine.x - scaling(wine.x)["mean"]) / scaling(wine.x)["scale"]
    ours = LogisticRegression(C=0.1).fit(scaled, wine.y)
    oracle = Sklearn(C=0.1, max_iter=1000).fit(scaled, wine.y)
    assert (ours.logits(scaled).argmax(axis=1) == oracle.predict(scaled)).mean() > 0.99
    two = wine.y < 2
    ours = LogisticRegression().fit(scaled[two], wine.y[two])
    oracle = Sklearn(max_iter=1000).fit(scaled[two], wine.y[two])
    margin = ours.logits(scaled[two]) @ [-1, 1]
    np.testing.assert_allclose(margin, oracle.decision_function(scaled[two]), atol=1e-3)


def test_the_other_baselines_by_hand():
    rows, target = np.array([[0.0], [1.0], [10.0]]), np.array([0, 0, 1])
    near = KNearestNeighbors(n_neighbors=1).fit(rows, target)
    assert near.logits(np.array([[0.2], [9.0]])).argmax(axis=1).tolist() == [0, 1]
    sets = np.array([[[3.0, 0], [0, 3]], [[1, 0], [1, 0]]])
    np.testing.assert_allclose(
        MeanToken().encode_documents(sets), [[0.5**0.5, 0.5**0.5], [1, 0]], rtol=1e-6
    )
    generator = np.random.default_rng(4)
    vectors = generator.normal(size=(30, 2)) @ generator.normal(size=(2, 6))
    pca = TruncatedPCA(n_components=2).fit(vectors)
    codes = pca.encode_documents(vectors)
    np.testing.assert_allclose(codes @ codes.T, vectors @ vectors.T, atol=1e-4)


def test_patch_tokens_are_the_overlapping_patches():
    x = np.arange(2 * 64, dtype=np.float32).reshape(2, 64)
    tokens = patch_tokens(x, (1, 8, 8))
    assert tokens.shape == (2, 36, 9)
    image = x[1].reshape(8, 8)
    np.testing.assert_array_equal(tokens[1, 7], image[1:4, 1:4].ravel())
    assert patch_tokens(np.zeros((1, 3 * 32 * 32)), (3, 32, 32)).shape[1] <= 64


def test_training_is_of_the_seed_and_stops_where_told():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))

    def trained(**options):
        weight = torch.nn.Parameter(torch.zeros(3))
        target = x @ torch.tensor([1.0, -2.0, 0.5])
        steps = optimize(
            [weight], lambda rows: (x[rows] @ weight - target[rows]).square().mean(), len(x),
            seed=0, lr=0.1, **options,
        )  # fmt: skip
        return weight.detach(), steps

    first, steps = trained(n_steps=150)
    assert steps == 150
    assert torch.equal(first, trained(n_steps=150)[0])
    torch.testing.assert_close(first, torch.tensor([1.0, -2.0, 0.5]), atol=0.05, rtol=0)
    assert trained(budget_s=0.2)[1] > 10
    assert n_steps_for(10) == 200
    assert n_steps_for(10**6) == 1000
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(EtudeError, match="training diverged"):
        optimize([weight], lambda rows: (weight / 0).sum(), 10, seed=0)


def test_both_arms_of_train_start_from_the_same_encoder(wine):
    task = get_task("train")
    facts = describe(wine, np.arange(100), 3)
    parts = [
        task.assemble(arm_of(task, name), facts, {}) for name in ("cross_entropy", "comp_sum_loss")
    ]
    for one, other in zip(
        parts[0]["encoder"].parameters(), parts[1]["encoder"].parameters(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", TASKS)
def test_a_baseline_fits_measures_and_comes_back_from_its_state(name):
    digits = load_dataset("digits", limit=400)
    digits = replace(digits, items=digits.x[:, ::-1])  # read by the task match alone
    task = get_task(name)
    split = task.split(digits, 0)
    for arm in (a for a in task.baselines.values() if task.why_not(a, digits) is None):
        fitted = task.fit(arm, digits, split, {}, seed=0, budget_s=None)
        values = task.measure(fitted, digits, split, "test")
        assert set(values) == set(task.metrics)
        again = restore(fitted.config(), fitted.state())
        rows = digits.x[split.test]
        np.testing.assert_array_equal(fitted.predict(rows), again.predict(rows))
        assert fitted.n_bytes > 0


def test_detect_holds_classes_back_from_training(wine):
    digits, task = load_dataset("digits"), get_task("detect")
    split = task.split(digits, 0)
    known = set(digits.y[split.train])
    for_validation = set(digits.y[split.validation]) - known
    for_test = set(digits.y[split.test]) - known
    assert len(known) == 6
    assert len(for_validation) == len(for_test) == 2
    assert not for_validation & for_test
    with pytest.raises(EtudeError, match="at least 4 classes"):
        task.split(wine, 0)


def test_unknown_names_and_wrong_tasks():
    with pytest.raises(EtudeError, match="task must be one of"):
        get_task("dance")
    with pytest.raises(EtudeError, match="answers the task 'search'"):
        arm_of(get_task("probe"), "muvera")
    assert {arm.name for arm in arms(get_task("probe"))} >= {"heads.naive_bayes_probe"}
