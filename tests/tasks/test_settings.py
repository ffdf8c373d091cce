"""Settings: what they change, what they leave alone, that both arms meet the same, refusals."""

import inspect
import json

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.lab.data import load_dataset
from etude.lab.plan import Plan, make_plan
from etude.tasks import arm_of, arms, get_task, metrics_of, restore, task_of
from etude.tasks.base import Dataset, split_rows
from etude.tasks.objectives import BinaryCrossEntropy, CrossEntropy
from etude.tasks.settings import altered, flipped, read_settings, written


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", limit=600)


def clouds(n=240, n_classes=3, labels=False):
    """Rows around the corners of a simplex; with `labels`, each sign of a coordinate is one."""
    generator = np.random.default_rng(0)
    y = np.arange(n) % n_classes
    x = (generator.normal(0, 0.3, (n, 6)) + 3 * np.eye(6)[y]).astype(np.float32)
    if not labels:
        return Dataset(name="clouds", x=x, y=y, classes=tuple("abcdef"[:n_classes]), hash="c")
    x = generator.normal(size=(n, 6)).astype(np.float32)
    return Dataset(
        name="signs", x=x, y=None, labels=x[:, :3] > 0.2, classes=("p", "q", "r"), hash="s"
    )


def test_words_of_settings_are_read_and_written():
    found = read_settings("train", ["noise=.40", "unseen"], ("noise", "unseen"))
    assert found == {"noise": 0.4, "unseen": 1.0}
    assert written(found) == ("noise=0.4", "unseen")
    assert read_settings("train", written(found), ("noise", "unseen")) == found


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("train", ["noise=2"], r"--setting noise must be a number from 0.01 to 0.95, got '2'"),
        ("train", ["noise=nan"], "must be a number from 0.01"),
        ("train", ["noise"], "needs a number, such as noise=0.4"),
        ("train", ["noise=much"], "got 'much'"),
        ("train", ["noize=1"], "noize is no setting of the task train, which has unseen"),
        ("train", ["shots=5"], "shots is no setting of the task train"),
        ("train", ["unseen=3"], "without a number"),
        ("train", ["noise=0.1", "noise=0.2"], "given once"),
        ("probe", ["shots=2.5"], "a whole number from 1 to 10000"),
        ("probe", ["shots=5", "imbalance=3"], "leave imbalance out"),
        ("probe", ["zero_shot", "shots=5"], "learns from no labels"),
        ("search", ["noise=0.1"], "the task search has no settings"),
    ],
)
def test_bad_settings_are_refused(task, words, message):
    with pytest.raises(EtudeError, match=message):
        get_task(task, words)


def test_noise_flips_the_share_of_training_labels_and_nothing_else(digits):
    task = get_task("train", ["noise=0.4"])
    split = task.split(digits, 1)
    np.testing.assert_array_equal(split.train, split_rows(digits, 1).train)
    before = digits.y.copy()
    seen = altered(digits, split.train, task.settings, 1)
    wrong = seen.y != digits.y
    assert wrong[split.train].sum() == round(0.4 * len(split.train))
    assert not wrong[split.test].any()
    assert not wrong[split.validation].any()
    np.testing.assert_array_equal(digits.y, before)
    again, other = (altered(digits, split.train, task.settings, s).y for s in (1, 2))
    np.testing.assert_array_equal(seen.y, again)
    assert (seen.y != other).any()


def test_flipped_labels_are_every_other_class_alike():
    y = np.zeros(30_000, dtype=np.int64)
    counts = np.bincount(flipped(y, 4, 0.6, 0), minlength=4)
    assert counts[0] == 12_000
    assert np.abs(counts[1:] - 6_000).max() < 300
    assert set(flipped(np.ones(100, dtype=np.int64), 2, 0.5, 0)) == {0, 1}


def test_both_arms_learn_from_the_same_wrong_labels(monkeypatch):
    task, data, seen = get_task("train", ["noise=0.4"]), clouds(), []
    split = task.split(data, 0)
    for method in (CrossEntropy, BinaryCrossEntropy):
        forward = method.forward

        def watched(self, logits, target=None, positives=None, forward=forward):
            given = {"target": target, "positives": positives}
            own = inspect.signature(forward).parameters
            seen[-1].append(positives.int().argmax(dim=1) if target is None else target.clone())
            return forward(self, logits, **{n: v for n, v in given.items() if n in own})

        monkeypatch.setattr(method, "forward", watched)
    for name in ("cross_entropy", "binary_cross_entropy"):
        seen.append([])
        arm = task.baselines[name]
        task.fit(arm, data, split, {"n_steps": 20}, seed=0, budget_s=None)
    assert torch.equal(torch.stack(seen[0]), torch.stack(seen[1]))


def test_wrong_labels_hurt_and_the_test_part_does_not_have_them():
    data, values = clouds(), {}
    for words in ((), ("noise=0.9",)):
        task = get_task("train", words)
        split = task.split(data, 0)
        fitted = task.fit(
            arm_of(task, "cross_entropy"), data, split, {"n_steps": 150}, seed=0, budget_s=None
        )
        values[words] = task.measure(fitted, data, split, "test")["accuracy"]
    assert values[()] > 0.97
    assert values["noise=0.9",] < 0.2  # nine of ten are wrong: the true class is the least likely


def test_imbalance_makes_a_geometric_tail_of_the_training_part_only(digits):
    task = get_task("train", ["imbalance=20"])
    split, whole = task.split(digits, 3), split_rows(digits, 3)
    np.testing.assert_array_equal(split.test, whole.test)
    np.testing.assert_array_equal(split.validation, whole.validation)
    assert set(split.train) < set(whole.train)
    counts = np.sort(np.bincount(digits.y[split.train]))[::-1]
    most = np.bincount(digits.y[whole.train]).min()
    wanted = [max(1, round(most * 20 ** (-k / 9))) for k in range(10)]
    assert counts.tolist() == wanted
    np.testing.assert_array_equal(split.train, task.split(digits, 3).train)
    with pytest.raises(EtudeError, match="imbalance must be at most"):
        get_task("train", ["imbalance=900"]).split(digits, 0)


def test_unseen_classes_are_in_one_part_each_and_retrieval_decides(digits):
    task = get_task("train", ["unseen"])
    split = task.split(digits, 0)
    parts = [set(digits.y[rows]) for rows in (split.train, split.validation, split.test)]
    assert [len(p) for p in parts] == [4, 3, 3]
    assert len(set.union(*parts)) == 10
    assert len(split.train) + len(split.validation) + len(split.test) == len(digits.x)
    assert metrics_of(task, digits)[0] == "recall_at_1"
    fitted = task.fit(arm_of(task, "arcface"), digits, split, {"n_steps": 5}, seed=0, budget_s=None)
    assert fitted.facts["n_classes"] == 4
    assert set(task.measure(fitted, digits, split, "test")) == set(metrics_of(task, digits))
    two = clouds(n_classes=2)
    for name in ("train", "probe"):
        with pytest.raises(EtudeError, match=r"at least 6 classes.*clouds with 2"):
            get_task(name, ["unseen"]).split(two, 0)


def test_unseen_in_probe_keeps_all_classes_in_the_test_part_but_those_tuned_on(digits):
    split = get_task("probe", ["unseen"]).split(digits, 0)
    train, validation, test = (
        set(digits.y[rows]) for rows in (split.train, split.validation, split.test)
    )
    assert (len(train), len(validation), len(test)) == (4, 7, 7)
    assert validation & test == train
    task = get_task("probe", ["unseen"])
    fitted = task.fit(arm_of(task, "k_nearest_neighbors"), digits, split, {}, seed=0, budget_s=None)
    values = task.measure(fitted, digits, split, "test")
    assert values["accuracy"] <= np.isin(digits.y[split.test], list(train)).mean()


def test_shots_keep_so_many_rows_a_class(digits):
    task = get_task("probe", ["shots=5"])
    split = task.split(digits, 2)
    assert np.bincount(digits.y[split.train]).tolist() == [5] * 10
    np.testing.assert_array_equal(split.test, split_rows(digits, 2).test)
    np.testing.assert_array_equal(split.train, task.split(digits, 2).train)
    assert set(split.train) != set(task.split(digits, 3).train)
    with pytest.raises(EtudeError, match=r"shots must be at most \d+, the training rows of class"):
        get_task("probe", ["shots=500"]).split(digits, 0)


def test_transductive_heads_need_their_setting_and_use_the_other_rows(digits):
    slug = "laplacian_transductive_clustering"
    plain, task = get_task("probe"), get_task("probe", ["shots=5", "transductive"])
    assert "--setting transductive" in plain.why_not(arm_of(plain, slug), digits)
    arm, split = arm_of(task, slug), task.split(digits, 0)
    assert task.why_not(arm, digits) is None
    fitted = task.fit(arm, digits, split, {}, seed=0, budget_s=None)
    assert task.measure(fitted, digits, split, "test")["accuracy"] > 0.5
    x = digits.x[split.test]
    alone = np.concatenate([task.logits(fitted, row[None]) for row in x[:20]])
    assert not np.allclose(alone, task.logits(fitted, x)[:20])
    assert "at most 6,000 rows" in get_task("probe", ["transductive"]).why_not(
        arm, Dataset(name="large", x=np.zeros((9_000, 2)), y=None)
    )


def text_data():
    """Sentences about three things, as the sentence encoder sees them."""
    from etude.nets.minilm import encode

    words = {"cat": "the kitten purrs", "train station": "the express leaves from platform",
             "soup": "a bowl of hot broth"}  # fmt: skip
    texts = [f"{text} {n}" for text in words.values() for n in range(10)]
    schema = {"format": "table", "columns": [{"name": "t", "kind": "text", "width": 384}]}
    return Dataset(
        name="things", x=encode(texts), y=np.repeat(np.arange(3), 10), classes=tuple(words),
        schema=schema, hash="t",
        descriptions={"cat": ["a small animal", "likes milk"], "train station": [],
                      "soup": ["food in a bowl"]},
    )  # fmt: skip


def test_zero_shot_learns_from_no_labels_and_meets_every_word_of_the_classes():
    data, task = text_data(), get_task("probe", ["zero_shot"])
    assert next(iter(task.baselines)) == "class_names"
    assert next(iter(get_task("probe").baselines)) == "logistic_regression"
    meeting = [a for a in [*arms(task), *task.baselines.values()] if task.why_not(a, data) is None]
    assert {a.name.rpartition(".")[2] for a in meeting} == {
        "class_names", "classify_by_description", "self_structural_alignment", "tfup_cache",
    }  # fmt: skip
    split = task.split(data, 0)
    shuffled = Dataset(**{**vars(data), "y": np.roll(data.y, 7)})
    for arm in meeting:
        fitted = task.fit(arm, data, split, {}, seed=0, budget_s=None)
        assert task.measure(fitted, data, split, "test")["accuracy"] == 1.0, arm.name
        blind = task.fit(arm, shuffled, split, {}, seed=0, budget_s=None)
        np.testing.assert_array_equal(fitted.predict(data.x), blind.predict(data.x))
        again = restore(json.loads(json.dumps(fitted.config())), fitted.state())
        np.testing.assert_array_equal(fitted.predict(data.x), again.predict(data.x))


def test_what_heads_lack_is_said(digits):
    task, data = get_task("probe"), text_data()
    assert "table whose only column" in task.why_not(arm_of(task, "tfup_cache"), digits)
    bare = Dataset(**{**vars(data), "descriptions": None})
    described = arm_of(task, "classify_by_description")
    assert "--descriptions FILE" in task.why_not(described, bare)
    loki = arm_of(task, "loki_frechet_mean")
    assert "--labels-metric FILE" in task.why_not(loki, digits)
    assert task.why_not(loki, data) is None
    assert task_of("loki_frechet_mean") == "probe"
    with pytest.raises(EtudeError, match="answers no task on a file"):
        task_of("rankme")


def test_a_label_metric_reaches_a_class_without_training_rows():
    """Five classes on a line; the two at odd places are never trained on, but lie between."""
    generator = np.random.default_rng(1)
    y = np.arange(300) % 5
    x = (y[:, None] + generator.normal(0, 0.15, (300, 1))).astype(np.float32)
    x = np.hstack([x, generator.normal(size=(300, 1)).astype(np.float32)])
    line = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
    data = Dataset(name="line", x=x, y=y, classes=tuple("01234"), class_distances=line, hash="l")
    task = get_task("probe")
    split = task.split(data, 0)
    known = split.train[np.isin(y[split.train], (0, 2, 4))]
    cut = type(split)(known, split.validation, split.test)
    odd = np.isin(y[split.test], (1, 3))
    for name, most, least in (("logistic_regression", 0.0, 0.0), ("loki_frechet_mean", 1.0, 0.5)):
        fitted = task.fit(arm_of(task, name), data, cut, {"C": 0.1}, seed=0, budget_s=None)
        right = task.predict(fitted, data.x[split.test]) == y[split.test]
        assert least <= right[odd].mean() <= most, name


def test_rows_of_several_labels_are_met_by_objectives_that_take_them():
    task, data = get_task("train"), clouds(labels=True)
    assert "asks for target" in task.why_not(arm_of(task, "comp_sum_loss"), data)
    split = task.split(data, 0)
    assert sorted(np.concatenate([split.train, split.validation, split.test])) == list(range(240))
    for name in ("binary_cross_entropy", "cross_entropy", "decoupled_softmax"):
        arm = arm_of(task, name)
        assert task.why_not(arm, data) is None
        fitted = task.fit(arm, data, split, {}, seed=0, budget_s=None)
        values = task.measure(fitted, data, split, "test")
        assert list(values) == list(metrics_of(task, data))
        assert values["precision_at_1"] > 0.6
        if name == "binary_cross_entropy":
            assert values["micro_f1"] > 0.85
    with pytest.raises(EtudeError, match="noise needs one class a row"):
        get_task("train", ["noise=0.2"]).split(data, 0)
    with pytest.raises(EtudeError, match="probe needs one class a row"):
        get_task("probe").split(data, 0)


def test_a_plan_carries_its_settings_and_its_id_knows_them(tmp_path):
    plain, _ = make_plan("wine", methods=["naive_bayes_probe"])
    noisy, _ = make_plan("wine", methods=["naive_bayes_probe"], settings=["noise=0.30"])
    assert noisy.id != plain.id
    assert noisy.settings == ("noise=0.3",)
    assert noisy.data == "wine (noise=0.3)"
    assert Plan.of(json.loads(json.dumps(noisy.spec()))).id == noisy.id
    few, _ = make_plan("digits", methods=["naive_bayes_probe"], settings=["shots=5"])
    assert few.overlap == pytest.approx(1 / 3, abs=0.01)
    plan, _ = make_plan("digits", methods=None, task="train")
    assert {"arcface", "triplet", "prototypical"} <= set(plan.methods)
    assert "losses.comp_sum_loss" in plan.methods
    with pytest.raises(EtudeError, match="class_names compares rows with the names"):
        make_plan("wine", methods=None, task="probe", settings=["zero_shot"])
