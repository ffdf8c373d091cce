"""Classification by description: the sentences, the mean of cosines, editing and explaining."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from etude.core import EtudeError, check_names, get_state, set_state
from etude.heads.classify_by_description import DescriptionClassifier, build_descriptor_prompts

LISTS = {
    "great_hen": ["a red comb", "two legs", "often feathers"],
    "tench": ["olive green or brown in color"],
    "sofa": ["used for sitting", "cushions"],
}


def encode(texts) -> np.ndarray:
    """A vector a text, of random direction and length, the same for equal texts."""
    rows = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=6) for t in texts]
    return np.stack(rows) * (1 + np.arange(len(rows)))[:, None]


def queries(n: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 6)) * 3


def cosine(a, b) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5


@pytest.mark.parametrize("aggregation", ["mean", "max", "sum"])
def test_scores_are_those_of_loops(aggregation: str) -> None:
    head = DescriptionClassifier(aggregation=aggregation).describe(LISTS, encode)
    sentences = {
        "great_hen": ["great hen, which is a red comb", "great hen, which has two legs",
                      "great hen, which often feathers"],
        "tench": ["tench, which has olive green or brown in color"],
        "sofa": ["sofa, which is used for sitting", "sofa, which has cushions"],
    }  # fmt: skip
    combine = {"mean": lambda v: sum(v) / len(v), "max": max, "sum": sum}[aggregation]
    expected = [
        [combine([cosine(x, encode([t])[0]) for t in texts]) for texts in sentences.values()]
        for x in queries()
    ]
    np.testing.assert_allclose(head.logits(queries()), expected, atol=1e-14)
    np.testing.assert_array_equal(head.predict(queries()), np.argmax(expected, axis=1))


def test_release() -> None:
    """Sentences of the release (d1a3d89, loading_helpers.py, its default settings).

    Run over the descriptors published with it: 10,096 of 10,183 sentences are ours to the letter;
    the other 87 begin with a letter or letters that it takes for a word, as the last two do.
    """
    ours = build_descriptor_prompts(
        {"tench": ["a freshwater fish", "small eyes", "may be grey", "used as bait", "an eye"],
         "jar": ["mayonnaise", "antennae", "canned"]}
    )  # fmt: skip
    assert ours["tench"] == [
        "tench, which is a freshwater fish", "tench, which has small eyes",
        "tench, which may be grey", "tench, which is used as bait", "tench, which is an eye",
    ]  # fmt: skip
    comma = build_descriptor_prompts({"jar": ["often, not always, full", "a, b"]})["jar"]
    assert comma == ["jar, which often, not always, full", "jar, which is a, b"]
    # there: "which mayonnaise", "which is antennae", "which canned"
    assert ours["jar"] == [f"jar, which has {d}" for d in ("mayonnaise", "antennae", "canned")]


def test_without_descriptors_it_is_zero_shot_classification_by_name() -> None:
    names = ["great hen", "tench", "sofa"]
    head = DescriptionClassifier().describe({n.replace(" ", "_"): [] for n in names}, encode)
    vectors = encode(names)
    expected = [[cosine(x, t) for t in vectors] for x in queries()]
    np.testing.assert_allclose(head.logits(queries()), expected, atol=1e-14)
    assert head.explain(queries(1), "tench")[0][0][0] == ""


def test_score_is_the_product_with_the_mean_vector_that_is_not_normalized_again() -> None:
    head = DescriptionClassifier().describe(LISTS, encode)
    x = queries() / np.linalg.norm(queries(), axis=1, keepdims=True)
    mean = np.stack([head.vectors_[head.owner_ == k].mean(axis=0) for k in range(3)])
    np.testing.assert_allclose(head.logits(queries()), x @ mean.T, atol=1e-14)
    assert np.linalg.norm(mean[0]) < 0.95


def test_a_repeated_descriptor_only_gains_weight() -> None:
    twice = LISTS | {"sofa": ["used for sitting", "cushions", "cushions"]}
    once, more = (DescriptionClassifier().describe(x, encode) for x in (LISTS, twice))
    a, b = queries() @ np.eye(6), once.explain(queries(), "sofa")
    values = [dict(row) for row in b]
    expected = [(v["used for sitting"] + 2 * v["cushions"]) / 3 for v in values]
    np.testing.assert_allclose(more.logits(a)[:, 2], expected, atol=1e-14)
    np.testing.assert_array_equal(more.logits(a)[:, :2], once.logits(a)[:, :2])


def test_scale_of_the_input_and_order_of_the_classes_do_not_matter() -> None:
    head = DescriptionClassifier().describe(LISTS, encode)
    np.testing.assert_allclose(head.logits(queries() * 1e6), head.logits(queries()), atol=1e-12)
    turned = DescriptionClassifier().describe(dict(reversed(LISTS.items())), encode)
    np.testing.assert_allclose(
        turned.logits(queries())[:, ::-1], head.logits(queries()), atol=1e-14
    )


def test_explanation_has_every_descriptor_with_its_cosine_the_best_first() -> None:
    head = DescriptionClassifier().describe(LISTS, encode)
    for x, pairs in zip(queries(), head.explain(queries(), "great_hen"), strict=True):
        assert sorted(d for d, _ in pairs) == sorted(LISTS["great_hen"])
        values = [value for _, value in pairs]
        assert values == sorted(values, reverse=True)
        sentences = dict(zip(head.descriptors, head.sentences, strict=True))
        for descriptor, value in pairs:
            assert value == pytest.approx(cosine(x, encode([sentences[descriptor]])[0]))
        assert np.mean(values) == pytest.approx(head.logits(x[None])[0, 0])


def test_an_edited_class_is_as_if_described_so_and_the_others_stay() -> None:
    head = DescriptionClassifier().describe(LISTS, encode)
    before = head.logits(queries())
    for new in (["a spring", "legs of wood", "may fold"], ["cushions"], []):
        head.edit("tench", new, encode)
        fresh = DescriptionClassifier().describe(LISTS | {"tench": new}, encode)
        scores = head.logits(queries())
        np.testing.assert_allclose(scores, fresh.logits(queries()), atol=1e-14)
        np.testing.assert_allclose(scores[:, [0, 2]], before[:, [0, 2]], atol=1e-14)
        assert head.sentences == fresh.sentences
        assert head.descriptors == fresh.descriptors
        np.testing.assert_array_equal(head.owner_, fresh.owner_)


def test_names_can_be_left_out() -> None:
    prompts = build_descriptor_prompts(LISTS, with_name=False)
    assert prompts["sofa"] == ["which is used for sitting", "which has cushions"]
    head = DescriptionClassifier(with_name=False).describe(LISTS, encode)
    assert head.sentences[0] == "which is a red comb"


def test_state_rebuilds_the_scores() -> None:
    head, copy = DescriptionClassifier().describe(LISTS, encode), DescriptionClassifier()
    set_state(copy, get_state(head))
    np.testing.assert_array_equal(copy.logits(queries()), head.logits(queries()))
    check_names(DescriptionClassifier.logits)


def test_refusals() -> None:
    head = DescriptionClassifier()
    with pytest.raises(EtudeError, match="aggregation must be one of mean, max, sum"):
        DescriptionClassifier(aggregation="median")
    with pytest.raises(EtudeError, match="call describe first"):
        head.logits(queries())
    with pytest.raises(EtudeError, match="of one class or more"):
        head.describe({}, encode)
    with pytest.raises(EtudeError, match="a sequence of strings for every class"):
        head.describe({"hen": "a comb"}, encode)
    with pytest.raises(EtudeError, match="'hen' must be non-empty"):
        head.describe({"hen": [" "]}, encode)
    with pytest.raises(EtudeError, match="a row a text"):
        head.describe(LISTS, lambda texts: encode(texts)[:-1])
    with pytest.raises(EtudeError, match="finite, no row zero"):
        head.describe(LISTS, lambda texts: encode(texts) * 0)
    head.describe(LISTS, encode)
    with pytest.raises(EtudeError, match="one of the 3 classes"):
        head.edit("hen", [], encode)
    with pytest.raises(EtudeError, match="of width 6"):
        head.logits(queries()[:, :5])
