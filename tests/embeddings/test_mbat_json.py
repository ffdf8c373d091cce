"""MBAT against the equations in plain loops, its theorems, and what breaks with other matrices.

No official code is known. The paper's theorem (orthogonal binding keeps norms and inner products
at any depth) is asserted to float precision through 50 levels, and its failure for independent
entries is asserted too, so that the test can tell the two apart.
"""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core import EtudeError
from etude.embeddings import OrthogonalMBAT, encode_json

MBAT = OrthogonalMBAT(64, seed=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def nested(keys, leaf):
    for key in reversed(keys):
        leaf = {key: leaf}
    return leaf


def test_the_encoding_is_the_sum_of_products_along_each_path():
    value = {"a": {"b": "red ink", "c": [True, None]}, "d": 3}
    m = MBAT.role
    words = MBAT.atom("word red") + MBAT.atom("word ink")
    want = (
        m("a") @ m("b") @ (words / np.linalg.norm(words))
        + m("a") @ m("c") @ m(None) @ MBAT.atom("literal True")
        + m("a") @ m("c") @ m(None) @ m(None) @ MBAT.atom("literal None")
        + m("d") @ MBAT.number(3)
    )
    np.testing.assert_allclose(encode_json(value, encoder=MBAT), want, atol=1e-12)


def test_roles_are_orthogonal_and_uniform():
    q = MBAT.role("a")
    np.testing.assert_allclose(q.T @ q, np.eye(64), atol=1e-12)
    # Haar: E[trace] = 0 and E[trace^2] = 1; without the signs of R the trace of Q is far off
    traces = [OrthogonalMBAT(8, seed=s).role("x").trace() for s in range(400)]
    assert abs(np.mean(traces)) < 0.2
    assert abs(np.mean(np.square(traces)) - 1) < 0.25


def test_fifty_levels_keep_norms_and_inner_products():
    keys = [f"k{i}" for i in range(50)]
    u, v = (encode_json(nested(keys, word), encoder=MBAT) for word in ("red ink", "red pen"))
    flat = [encode_json(word, encoder=MBAT) for word in ("red ink", "red pen")]
    assert np.linalg.norm(u) == pytest.approx(1, abs=1e-12)
    assert u @ v == pytest.approx(flat[0] @ flat[1], abs=1e-12)


@pytest.mark.parametrize("matrices", ["gaussian", "sign"])
def test_independent_entries_do_not(matrices):
    norms = [
        np.linalg.norm(
            encode_json(
                nested([f"k{i}" for i in range(20)], "red"),
                encoder=OrthogonalMBAT(64, seed=s, matrices=matrices),
            )
        )
        for s in range(12)
    ]
    assert np.std(norms) > 0.1


def test_nesting_keeps_its_order_and_keys_have_none():
    ab = encode_json({"a": {"b": "v"}}, encoder=MBAT)
    ba = encode_json({"b": {"a": "v"}}, encoder=MBAT)
    assert abs(cosine(ab, ba)) < 0.5
    np.testing.assert_allclose(
        encode_json({"a": 1, "b": 2}, encoder=MBAT),
        encode_json({"b": 2, "a": 1}, encoder=MBAT),
        atol=1e-12,
    )
    one, two = (encode_json(v, encoder=MBAT) for v in (["x", "y"], ["y", "x"]))
    assert cosine(one, two) < 0.5


@pytest.mark.parametrize("key", ["", "[]", "None", "sequence"])
def test_no_key_stands_for_an_array(key):
    one, two = (encode_json(v, encoder=MBAT) for v in ({key: "x"}, ["x"]))
    assert abs(cosine(one, two)) < 0.5


def test_unbinding_finds_the_value():
    large = OrthogonalMBAT(256, seed=1)
    words = [f"w{i}" for i in range(200)]
    atoms = np.stack([encode_json(word, encoder=large) for word in words])
    whole = encode_json({f"key{i}": words[i] for i in range(6)}, encoder=large)
    for i in range(6):
        found = large.unbind(f"key{i}", whole)
        assert int(np.argmax(atoms @ found)) == i
        # cross-talk: the other five values in random directions
        assert np.linalg.norm(found - atoms[i]) == pytest.approx(np.sqrt(5), rel=0.15)


def test_a_string_is_its_words_in_any_case_and_order():
    first = encode_json("Red ink, dry", encoder=MBAT)
    np.testing.assert_allclose(encode_json("dry red INK", encoder=MBAT), first, atol=1e-12)
    assert cosine(first, encode_json("red pen", encoder=MBAT)) < 0.8
    assert cosine(encode_json("--", encoder=MBAT), encode_json("++", encoder=MBAT)) < 0.5


def test_near_numbers_are_near():
    large = OrthogonalMBAT(1024)
    at = {x: large.number(x) for x in (-100, -1, 0, 1, 99, 100, 1e6, 1e12)}
    to_100 = [cosine(at[100], at[x]) for x in (99, 1e6, 1, 0, -1, -100)]
    assert to_100[0] > 0.98
    assert cosine(at[100], at[1]) > cosine(at[100], at[0]) > cosine(at[100], at[-1])
    assert cosine(at[100], at[-1]) > cosine(at[100], at[-100])
    assert cosine(at[1e12], large.number(1e9)) == pytest.approx(1)


def test_one_seed_one_vector_and_matrices_may_be_forgotten(monkeypatch):
    value = {"a": 1, "b": {"c": [1, "x"]}}
    first = encode_json(value, encoder=OrthogonalMBAT(32, seed=5))
    monkeypatch.setattr("etude.embeddings.mbat_json.KEPT", 1)
    again = OrthogonalMBAT(32, seed=5)
    np.testing.assert_array_equal(first, encode_json(value, encoder=again))
    assert len(again._kept) == 1
    assert not np.allclose(first, encode_json(value, encoder=OrthogonalMBAT(32, seed=6)))


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_every_json_value_has_a_finite_vector(value):
    vector = encode_json(json.loads(json.dumps(value)), encoder=MBAT)
    assert vector.shape == (64,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) > 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "number must be finite"),
        ([float("inf")], "number must be finite"),
        ({1: 2}, "a key must be text"),
        ({"a": {1, 2}}, "the JSON value must be None, bool, number"),
        (nested(["k"] * 201, 1), "nested at most 200 deep"),
        ([0] * 100_001, "at most 100,000 values"),
    ],
)
def test_refusals(value, message):
    with pytest.raises(EtudeError, match=message):
        encode_json(value, encoder=OrthogonalMBAT(2))


def test_refusals_of_the_encoder():
    with pytest.raises(EtudeError, match="dim must be in 2"):
        OrthogonalMBAT(1)
    with pytest.raises(EtudeError, match="matrices must be one of"):
        OrthogonalMBAT(8, matrices="haar")
    with pytest.raises(EtudeError, match=r"vector must be \(64,\)"):
        MBAT.bind("a", np.zeros(3))
