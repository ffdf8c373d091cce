"""The probe suite against its theorems and loops; the survey has neither code nor numbers.

The hashes of n-grams are the published test vectors of FNV-1a with 32 bits ("a" 0xE40C292C,
"foobar" 0xBF9CF968).
"""

import math

import numpy as np
import pytest
import scipy.sparse
from scipy.stats import spearmanr

from etude.core import EtudeError
from etude.embeddings import (
    evaluate_embeddings,
    glove,
    ppmi_svd,
    sentence_vectors,
    sgns,
    subword_vectors,
    weat,
)
from etude.embeddings.embedding_probe_suite import _grams, _minimize


@pytest.fixture
def counts():
    return np.random.default_rng(0).integers(1, 40, size=(7, 7)).astype(float)


def pmi(x):
    out = np.empty_like(x)
    for w in range(len(x)):
        for c in range(len(x)):
            out[w, c] = math.log(x[w, c] * x.sum() / (x[w].sum() * x[:, c].sum()))
    return out


def test_theorem_sgns_is_shifted_pmi(counts):
    x = counts[:5, :5]
    for k in (1.0, 4.0):
        words, contexts = sgns(x, dim=5, shift=k, power=1.0, n_steps=800)
        np.testing.assert_allclose(words @ contexts.T, pmi(x) - math.log(k), atol=2e-3)


def test_with_the_usual_power_the_shift_is_the_context_s_own(counts):
    words, contexts = sgns(counts, dim=7, shift=2.0, power=0.75, n_steps=1000)
    q = counts.sum(0) ** 0.75
    want = np.log(counts / (2.0 * np.outer(counts.sum(1), q / q.sum())))
    np.testing.assert_allclose(words @ contexts.T, want, atol=2e-3)
    assert np.abs(want - (pmi(counts) - math.log(2.0))).max() > 0.02


def test_theorem_glove_of_full_width_fits_every_logarithm_that_has_weight(counts, monkeypatch):
    kept = []

    def minimize(loss, weights, n_steps):
        _minimize(loss, weights, n_steps)
        kept.append([weight.detach().numpy() for weight in weights])
        kept.append(float(loss().detach()))

    monkeypatch.setattr("etude.embeddings.embedding_probe_suite._minimize", minimize)
    counts[0, 1] = 0.0
    vectors = glove(counts, dim=7, x_max=10.0, n_steps=500)
    words, contexts, b, c = kept[0]
    np.testing.assert_allclose(vectors, words + contexts)
    fitted = words @ contexts.T + b + c
    seen = counts > 0
    np.testing.assert_allclose(fitted[seen], np.log(counts[seen]), atol=1e-3)
    # and the objective, where it is not at its end, by loops
    glove(counts, dim=2, x_max=20.0, alpha=0.5, n_steps=1)
    (words, contexts, b, c), loss = kept[2:]
    total = weight = 0.0
    for i, j in zip(*np.nonzero(counts), strict=True):
        f = min(1.0, counts[i, j] / 20.0) ** 0.5
        total += f * (words[i] @ contexts[j] + b[i, 0] + c[0, j] - math.log(counts[i, j])) ** 2
        weight += f
    assert loss == pytest.approx(total / weight)


def test_glove_finds_two_blocks():
    blocks = np.kron(np.eye(2), np.ones((4, 4))) * 30 + 1.0
    vectors = glove(blocks, dim=2, x_max=20.0, n_steps=300)
    pairs = np.array([(i, j) for i in range(8) for j in range(i)])
    truth = (pairs[:, 0] // 4 == pairs[:, 1] // 4).astype(float)
    assert evaluate_embeddings(vectors, pairs=pairs, similarities=truth)["similarity"] > 0.8


def test_ppmi_of_full_width_gives_the_matrix_back(counts):
    x = counts + counts.T
    ppmi = np.maximum(pmi(x), 0)
    vectors = ppmi_svd(x, dim=7)
    # U S U^T is the matrix's absolute value: square roots of its square
    want = np.linalg.eigh(ppmi)
    absolute = want[1] @ np.diag(np.abs(want[0])) @ want[1].T
    np.testing.assert_allclose(vectors @ vectors.T, absolute, atol=1e-10)
    q = x.sum(0) ** 0.5
    usual = np.log(x / np.outer(x.sum(1), q / q.sum())) - math.log(1.1)
    singular = np.linalg.svd(np.maximum(usual, 0), compute_uv=False)
    found = ppmi_svd(x, dim=7, shift=1.1, power=0.5)
    np.testing.assert_allclose((found**2).sum(0), singular, atol=1e-10)
    shifted = np.maximum(pmi(x) - math.log(1.2), 0)
    singular = np.linalg.svd(shifted, compute_uv=False)
    np.testing.assert_allclose((ppmi_svd(x, dim=7, shift=1.2) ** 2).sum(0), singular, atol=1e-10)


def test_ppmi_takes_sparse_counts_and_words_that_never_occur(counts):
    counts[3], counts[:, 3] = 0, 0
    vectors = ppmi_svd(scipy.sparse.csr_matrix(counts), dim=4)
    np.testing.assert_array_equal(vectors, ppmi_svd(counts, dim=4))
    np.testing.assert_allclose(vectors[3], 0, atol=1e-12)


def test_hashes_are_fnv_1a():
    # a word of one letter and no n-gram of three inside: <a> alone
    assert _grams(["a"], 2**32, 3, 6).indices.tolist() == [fnv(b"<a>")]
    assert fnv(b"a") == 0xE40C292C
    assert fnv(b"foobar") == 0xBF9CF968


def fnv(text):
    value = 2166136261
    for byte in text:
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value


def test_grams_of_a_word_by_hand():
    row = _grams(["abc"], 2**20, 3, 4).toarray()[0]
    grams = ["<abc>", "<ab", "abc", "bc>", "<abc", "abc>"]
    assert sorted(np.flatnonzero(row)) == sorted(fnv(g.encode()) % 2**20 for g in grams)
    np.testing.assert_allclose(row[row > 0], 1 / 6)
    # <ab> is one of the word's own n-grams of four letters, but counts once
    short = _grams(["ab"], 2**20, 3, 4).toarray()[0]
    np.testing.assert_allclose(short[[fnv(g) % 2**20 for g in (b"<ab>", b"<ab", b"ab>")]], 1 / 3)


def test_subwords_serve_any_word_and_related_ones_are_alike():
    words = ["tonal", "tonic", "tones", "marks", "marked", "marking"]
    blocks = np.kron(np.eye(2), np.ones((3, 3))) * 20 + 1.0
    vectors = subword_vectors(words, blocks, dim=4, n_steps=60)
    new = vectors(["toning", "marker", "w"])
    assert new.shape == (3, 4)
    assert np.isfinite(new).all()
    known = vectors(words)
    alike = new[:2] @ known.T
    assert alike[0, :3].min() > alike[0, 3:].max()
    assert alike[1, 3:].min() > alike[1, :3].max()


def test_sif_by_loops_and_orthogonal_to_what_it_removed():
    rng = np.random.default_rng(3)
    vectors, counts = rng.normal(size=(9, 4)), rng.integers(0, 3, size=(12, 9)).astype(float)
    a, p = 0.02, counts.sum(0) / counts.sum()
    plain = np.array([
        sum(row[w] * a / (a + p[w]) * vectors[w] for w in range(9)) / row.sum() for row in counts
    ])  # fmt: skip
    u = np.linalg.eigh(plain.T @ plain)[1][:, -1]  # not centered
    ours = sentence_vectors(vectors, counts, a=a)
    np.testing.assert_allclose(ours, plain - np.outer(plain @ u, u), atol=1e-12)
    np.testing.assert_allclose(ours @ u, 0, atol=1e-12)
    # at test the training sentences' direction and frequencies are used again
    again = sentence_vectors(vectors, counts[:1], train_counts=counts, a=a)
    np.testing.assert_allclose(again, ours[:1], atol=1e-12)


def test_means_and_inverse_document_frequency():
    vectors, counts = np.eye(3), np.array([[2.0, 0, 0], [1, 1, 0], [0, 0, 0]])
    mean = sentence_vectors(vectors, counts, weighting="mean")
    np.testing.assert_allclose(mean, [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])
    idf = sentence_vectors(vectors, counts, weighting="idf")
    np.testing.assert_allclose(idf[1], [(math.log(4 / 3) + 1) / 2, (math.log(2) + 1) / 2, 0])
    # at test by the training sentences' frequencies
    again = sentence_vectors(vectors, counts[1:2], weighting="idf", train_counts=counts)
    np.testing.assert_allclose(again, idf[1:2])


def slow_analogy(vectors, question, rule):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    a, b, c, _ = question
    best, at = -math.inf, -1
    for d in range(len(unit)):
        if d in (a, b, c):
            continue
        x, y, z = (float(unit[d] @ unit[w]) for w in (a, b, c))
        score = y - x + z if rule == "add" else (1 + y) * (1 + z) / 4 / ((1 + x) / 2 + 1e-3)
        if score > best:
            best, at = score, d
    return at


def test_analogies_and_similarity_by_loops():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(12, 3))
    questions = np.array([rng.permutation(12)[:4] for _ in range(60)])
    questions[30:, 3] = [slow_analogy(vectors, q, "add") for q in questions[30:]]
    pairs = rng.integers(0, 12, size=(20, 2))
    truth = rng.normal(size=20)
    found = evaluate_embeddings(vectors, pairs=pairs, similarities=truth, analogies=questions)
    for rule in ("add", "mul"):
        hits = np.mean([slow_analogy(vectors, q, rule) == q[3] for q in questions])
        assert found[f"analogy_{rule}"] == pytest.approx(hits)
    assert found["analogy_add"] >= 0.5 > 0.0
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [unit[i] @ unit[j] for i, j in pairs]
    assert found["similarity"] == pytest.approx(spearmanr(cosines, truth).statistic)


def test_planted_analogies_are_found_and_the_question_s_words_are_no_answers():
    grid = np.array([[10, 0], [10, 3], [12, 0], [12, 3]], dtype=float)
    vectors = np.column_stack([grid, np.full(4, 10.0)])
    questions = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [0, 2, 1, 3]])
    found = evaluate_embeddings(vectors, analogies=questions)
    assert found == {"analogy_add": 1.0, "analogy_mul": 1.0}


def test_weat_by_loops_and_its_two_antisymmetries():
    vectors = np.random.default_rng(5).normal(size=(10, 4))
    x, y, a, b = (0, 1, 2), (3, 4), (5, 6, 7), (8, 9)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    s = {
        w: np.mean([unit[w] @ unit[i] for i in a]) - np.mean([unit[w] @ unit[i] for i in b])
        for w in (*x, *y)
    }
    apart = np.mean([s[w] for w in x]) - np.mean([s[w] for w in y])
    mean = np.mean(list(s.values()))
    want = apart / math.sqrt(sum((v - mean) ** 2 for v in s.values()) / 4)
    assert weat(vectors, (x, y), (a, b)) == pytest.approx(want)
    assert weat(vectors, (x, y), (b, a)) == pytest.approx(-want)
    assert weat(vectors, (y, x), (a, b)) == pytest.approx(-want)
    assert weat(7 * vectors, (x, y), (a, b)) == pytest.approx(want)


def test_the_seed_is_all_the_randomness(counts):
    one, again, other = (sgns(counts, dim=3, n_steps=5, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_refusals(counts):
    with pytest.raises(EtudeError, match=r"cooccurrence must be \(N, N\)"):
        ppmi_svd(counts[:3], dim=2)
    with pytest.raises(EtudeError, match="cooccurrence must be counts of at least 0"):
        ppmi_svd(-counts, dim=2)
    with pytest.raises(EtudeError, match=r"dim must be in 1\.\.7"):
        sgns(counts, dim=8)
    with pytest.raises(EtudeError, match="shift must be at least 1"):
        ppmi_svd(counts, dim=2, shift=0.5)
    with pytest.raises(EtudeError, match=r"power must be in 0\.\.1"):
        sgns(counts, dim=2, power=2.0)
    with pytest.raises(EtudeError, match="words must be 7 words"):
        subword_vectors(["a"], counts, dim=2)
    with pytest.raises(EtudeError, match="weighting must be mean, idf or sif"):
        sentence_vectors(counts, counts, weighting="max")
    with pytest.raises(EtudeError, match="similarities must be 1 numbers"):
        evaluate_embeddings(counts, pairs=np.array([[0, 1]]))
    with pytest.raises(EtudeError, match="attributes must be two sets of words"):
        weat(counts, ([0], [1]), ([2], []))
    with pytest.raises(EtudeError, match=r"alpha must be in 0\.\.1"):
        glove(counts, dim=2, alpha=2.0)
