"""DBNorm against slow loops in float64, its reductions, and the released code.

Released code: yimuwangcs/Better_Cross_Modal_Retrieval at c055b86, DBNorm/dbnorm.py: its IS() for
each bank, called with the test matrix, and the product of both. Inputs: numpy default_rng(0),
normal(size=(4, 6)) test, (5, 6) query bank, (7, 6) gallery bank, all clipped to [-1, 1] by tanh,
beta 1/1.99 and 3. The logarithm of the release's product at [0, :3] and its sum over all entries
are the numbers below; ours were equal to 4e-16.
"""

import numpy as np
import pytest

from etude.core import EtudeError
from etude.retrieval import (
    dual_dynamic_inverted_softmax,
    dual_inverted_softmax,
    hub_offset,
    hub_skewness,
)

RELEASED = [-4.6780160804812985, -6.245137145334906, -3.605323077367561]
RELEASED_SUM = -126.94856832795247


@pytest.fixture
def banks():
    rng = np.random.default_rng(0)
    return tuple(np.tanh(rng.normal(size=(rows, 6))) for rows in (4, 5, 7))


def slow(scores, query_bank, gallery_bank, b1, b2):
    found = np.empty_like(scores)
    for i in range(len(scores)):
        for j in range(scores.shape[1]):
            by_query = np.exp(b1 * scores[i, j]) / sum(np.exp(b1 * row[j]) for row in query_bank)
            by_item = np.exp(b2 * scores[i, j]) / sum(np.exp(b2 * row[j]) for row in gallery_bank)
            found[i, j] = by_query * by_item
    return found


def test_dual_is_the_product_of_both_inverted_softmaxes(banks):
    ours = dual_inverted_softmax(*banks, query_scale=2.0, gallery_scale=5.0)
    np.testing.assert_allclose(np.exp(ours), slow(*banks, 2.0, 5.0), rtol=1e-12)


def test_same_as_the_released_code(banks):
    ours = dual_inverted_softmax(*banks)
    np.testing.assert_allclose(ours[0, :3], RELEASED, rtol=1e-12)
    assert ours.sum() == pytest.approx(RELEASED_SUM, rel=1e-12)


def test_without_the_gallery_bank_the_query_bank_s_inverted_softmax_is_left(banks):
    scores, queries, items = banks
    ours = dual_inverted_softmax(scores, queries, items, query_scale=4.0, gallery_scale=0.0)
    alone = 4.0 * scores - np.log(np.exp(4.0 * queries).sum(axis=0))
    np.testing.assert_allclose(ours, alone - np.log(len(items)), rtol=1e-12)


def test_equal_masses_leave_the_order(banks):
    scores = banks[0]
    level = np.linspace(-1, 1, 5)[:, None] * np.ones(6)
    ours = dual_inverted_softmax(scores, level, level)
    np.testing.assert_array_equal(np.argsort(-ours, axis=1), np.argsort(-scores, axis=1))


def test_a_hub_loses_its_lead():
    # item 0 is a little more similar to every query than its own item is, and so it is to banks
    own = np.eye(4) * 0.8
    own[:, 0] = np.maximum(own[:, 0], 0.85)
    plain = own.argmax(axis=1)
    assert plain.tolist() == [0, 0, 0, 0]
    ours = dual_inverted_softmax(own, own.copy(), np.tile([0.85, 0.2, 0.2, 0.2], (4, 1)))
    assert ours.argmax(axis=1).tolist()[1:] == [1, 2, 3]
    assert hub_skewness(ours, 1) < hub_skewness(own, 1)


def test_large_scales_do_not_overflow(banks):
    ours = dual_inverted_softmax(*banks, query_scale=1e5, gallery_scale=1e5)
    assert np.isfinite(ours).all()


def test_the_offset_ranks_by_one_inner_product(banks):
    rng = np.random.default_rng(1)
    queries, items = rng.normal(size=(3, 5)), rng.normal(size=(6, 5))
    offset = hub_offset(*banks[1:], query_scale=2.0, gallery_scale=1.0)
    longer = np.column_stack([items, -offset / 3.0])
    found = np.column_stack([queries, np.ones(3)]) @ longer.T
    ours = dual_inverted_softmax(queries @ items.T, *banks[1:], query_scale=2.0, gallery_scale=1.0)
    np.testing.assert_allclose(3.0 * found, ours, rtol=1e-12)


def test_a_query_outside_both_sets_keeps_its_order():
    scores = np.array([[-0.9, -0.1, -0.5], [-0.1, -0.9, -0.5]])
    bank = np.array([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0]])  # activates item 0 only
    ours = dual_dynamic_inverted_softmax(scores, bank, bank, query_scale=2.0, gallery_scale=3.0)
    np.testing.assert_allclose(ours[0], 5.0 * scores[0])
    full = dual_inverted_softmax(scores, bank, bank, query_scale=2.0, gallery_scale=3.0)
    np.testing.assert_allclose(ours[1], full[1])
    assert not np.allclose(full[0], ours[0])


def test_one_bank_may_activate_alone():
    scores = np.array([[0.9, 0.1]])
    on, off = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    ours = dual_dynamic_inverted_softmax(scores, on, off, query_scale=2.0, gallery_scale=3.0)
    np.testing.assert_allclose(ours, 5.0 * scores - 2.0 * on)


def test_with_k_of_all_items_the_dynamic_form_is_the_plain_one(banks):
    dynamic = dual_dynamic_inverted_softmax(*banks, k=6)
    np.testing.assert_allclose(dynamic, dual_inverted_softmax(*banks))


def test_an_item_of_both_gallery_and_bank_is_left_out_by_minus_infinity(banks):
    scores, queries, items = banks
    longer = np.vstack([items, np.full(6, 7.0)])
    longer[-1, :] = -np.inf
    np.testing.assert_allclose(
        dual_inverted_softmax(scores, queries, longer),
        dual_inverted_softmax(scores, queries, items),
    )
    # at scale 0 as well: what is left out is not counted
    np.testing.assert_allclose(
        hub_offset(queries, longer, gallery_scale=0.0),
        hub_offset(queries, items, gallery_scale=0.0),
    )


def test_a_pair_that_is_left_out_activates_nothing():
    scores = np.array([[0.9, 0.1, 0.2], [0.1, 0.9, 0.2]])
    bank = np.array([[-np.inf, 0.3, 0.2], [-np.inf] * 3, [0.5, 0.6, -np.inf]])
    found = dual_dynamic_inverted_softmax(scores, bank, bank, query_scale=2.0, gallery_scale=1.0)
    np.testing.assert_allclose(found[0], 3.0 * scores[0])  # item 0 leads for no member
    assert found[1, 1] != pytest.approx(3.0 * 0.9)
    fewer = np.array([[-np.inf, 0.3, -np.inf], [0.1, 0.6, 0.5]])  # the first member has one
    two = dual_dynamic_inverted_softmax(scores, fewer, fewer, k=2)
    np.testing.assert_allclose(two[0], (1 / 1.99 + 3.0) * scores[0])


def test_skewness_counts_the_items_that_nobody_retrieves():
    scores = np.zeros((6, 4))
    scores[:, 0] = 1.0
    counts = np.array([6.0, 0.0, 0.0, 0.0])
    want = ((counts - 1.5) ** 3).mean() / counts.std() ** 3
    assert hub_skewness(scores, 1) == pytest.approx(want)
    assert hub_skewness(np.eye(4), 1) == 0.0
    assert hub_skewness(scores, 4) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.zeros(3)}, "scores must be a matrix"),
        ({"scores": np.full((2, 6), -np.inf)}, "scores must be finite"),
        ({"query_bank": np.zeros((0, 6))}, "query_bank must be a matrix with at least one row"),
        ({"query_bank": np.full((2, 6), np.nan)}, "query_bank must be free of NaN"),
        ({"gallery_bank": np.full((2, 6), -np.inf)}, "gallery_bank must be finite for every"),
        ({"gallery_bank": np.zeros((2, 5))}, "gallery_bank must be as wide"),
        ({"query_scale": -1.0}, "query_scale must be at least 0"),
        ({"gallery_scale": np.inf}, "gallery_scale must be at least 0"),
    ],
)
def test_refusals(banks, change, message):
    given = dict(zip(("scores", "query_bank", "gallery_bank"), banks, strict=True)) | change
    with pytest.raises(EtudeError, match=message):
        dual_inverted_softmax(**given)


def test_refusals_of_k(banks):
    with pytest.raises(EtudeError, match=r"k must be in 1\.\.6"):
        dual_dynamic_inverted_softmax(*banks, k=7)
    with pytest.raises(EtudeError, match=r"k must be in 1\.\.6"):
        hub_skewness(banks[0], 0)
