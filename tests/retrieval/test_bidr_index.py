"""BiDR's index: scores by the equation, answers, its folder."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.core.codec import random_rotation
from etude.core.nearest import Exact
from etude.retrieval import BiGranularIndex, ContrastiveProductQuantizer


def quantizer(dim=12, n_parts=3, n_centroids=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float32))[0]
    rows = torch.randn(
        n_parts, n_centroids, dim // n_parts, generator=generator, dtype=torch.float32
    )
    return ContrastiveProductQuantizer(
        dim, n_parts=n_parts, n_centroids=n_centroids, rotation=turn, codebook=rows
    )


def texts(n=3000, dim=64, n_queries=20, seed=0):
    """Rows around centers, as text embeddings lie, of unit length; queries near some rows."""
    generator = np.random.default_rng(seed)
    centers = generator.standard_normal((60, dim))
    rows = centers[generator.integers(0, 60, n)] + 0.6 * generator.standard_normal((n, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[:n_queries] + 0.05 * generator.standard_normal((n_queries, dim))
    return rows.astype(np.float32), queries.astype(np.float32)


def test_verifying_everything_equals_exact_search():
    rows, queries = texts()
    for n_threads in (1, 2):
        index = BiGranularIndex(64, n_near=3000, n_verified=3000, n_threads=n_threads).add(rows)
        for some in (queries, queries[:1]):
            ids, scores = index.search(some, 10)
            expected = Exact(rows).search(some, 10)
            np.testing.assert_array_equal(ids, expected[0])
            np.testing.assert_allclose(scores, expected[1], rtol=1e-5)


def test_recall_grows_with_the_shortlist_and_is_never_above_it():
    rows, queries = texts(n=6000)
    true = Exact(rows).search(queries, 10)[0]
    recalls = []
    for n_verified in (10, 40, 160):
        index = BiGranularIndex(64, n_near=1000, n_verified=n_verified).add(rows)
        found, _ = index.search(queries, 10)
        listed, _ = index.search(queries, n_verified)
        hit = (found[:, :, None] == true[:, None, :]).any(1)
        assert (hit <= (listed[:, :, None] == true[:, None, :]).any(1)).all()
        recalls.append(hit.mean())
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.95


def test_score_is_the_dense_product_and_the_weighted_code_score():
    rows, queries = texts(n=400, dim=24)
    model = quantizer(24, n_parts=4, n_centroids=16)
    index = BiGranularIndex(24, quantizer=model, n_verified=400, code_weight=0.3).add(rows)
    ids, scores = index.search(queries, 5)
    with torch.no_grad():
        decoded = model(torch.from_numpy(rows)).numpy()
    total = queries @ rows.T + 0.3 * (queries @ model.rotation.numpy().T) @ decoded.T
    np.testing.assert_array_equal(ids, np.argsort(-total, axis=1)[:, :5])
    np.testing.assert_allclose(scores, -np.sort(-total, axis=1)[:, :5], rtol=1e-4, atol=1e-5)
    assert index.memory_bytes == 400 * (4 + 4 + 8)


@pytest.mark.parametrize("rotate", [True, False])
def test_score_with_signs_is_the_dense_product_and_the_weighted_estimate(rotate):
    rows, queries = texts(n=400, dim=24 if rotate else 64)
    dim = rows.shape[1]
    index = BiGranularIndex(
        dim, n_near=400, n_verified=400, code_weight=0.3, rotate=rotate, seed=5
    ).add(rows)
    turn = random_rotation(dim, 5).astype(float) if rotate else np.eye(dim)
    center = rows.mean(axis=0, dtype=float)
    ids, scores = index.search(queries, 5)
    for b, query in enumerate(queries.astype(float)):
        total = []
        for row in rows.astype(float):
            turned = turn @ (row - center)
            signs = np.where(turned > 0, 1.0, -1.0)
            decoded = signs * (turned @ turned) / np.abs(turned).sum()
            total.append(query @ row + 0.3 * (decoded @ (turn @ query) + center @ query))
        np.testing.assert_allclose(scores[b], np.sort(total)[::-1][:5], rtol=1e-4)
        np.testing.assert_array_equal(ids[b], np.argsort(total)[::-1][:5])


def test_codes_of_their_own_choose_the_candidates():
    rows, _ = texts(n=500)
    other = np.roll(rows, 1, axis=0)  # the codes of row n are those of row n - 1
    index = BiGranularIndex(64, n_near=1, n_verified=1).add(rows, code_vectors=other)
    ids, scores = index.search(rows[:50], 1)
    np.testing.assert_array_equal(ids[:, 0], np.arange(1, 51))
    np.testing.assert_allclose(scores[:, 0], (rows[:50] * rows[1:51]).sum(1), atol=1e-5)
    again, _ = index.search(rows[:50], 1, code_queries=other[:50])
    np.testing.assert_array_equal(again[:, 0], np.arange(50))


def test_added_parts_answer_like_one_and_ids_are_the_callers():
    rows, queries = texts()
    names = np.random.default_rng(0).permutation(10**6)[: len(rows)]
    whole = BiGranularIndex(64).fit(rows).add(rows, ids=names)
    parts = BiGranularIndex(64).fit(rows)
    for start, stop in ((0, 1000), (1000, 1001), (1001, 3000), (3000, 3000)):
        parts.add(rows[start:stop], ids=names[start:stop])
    assert len(whole) == len(parts) == 3000
    for one, other in zip(whole.search(queries), parts.search(queries), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.search(queries, 1)[0][:, 0], names[: len(queries)])


def test_equal_documents_come_in_the_order_of_their_ids():
    rows, _ = texts(n=10, n_queries=1)
    ids = np.arange(100)[::-1].copy()
    index = BiGranularIndex(64).add(np.repeat(rows, 10, axis=0), ids=ids)
    found, _ = index.search(rows[3:4], 10)
    np.testing.assert_array_equal(found[0], np.arange(60, 70))


def test_width_not_a_multiple_and_few_or_no_documents():
    rows, queries = texts(n=30, dim=50)
    assert BiGranularIndex(50).add(rows).search(queries, 100)[0].shape == (20, 30)
    empty = BiGranularIndex(50)
    assert (len(empty), empty.memory_bytes) == (0, 0)
    assert empty.search(queries, 5)[0].shape == (20, 0)
    assert empty.fit(rows).search(queries, 5)[0].shape == (20, 0)
    assert BiGranularIndex(50).add(rows).search(queries[:0], 5)[0].shape == (0, 5)


def test_memory_is_below_64_bytes_a_vector_of_width_384(tmp_path):
    rows = np.random.default_rng(0).standard_normal((2000, 384), dtype=np.float32)
    index = BiGranularIndex(384).add(rows)
    assert index.memory_bytes / 2000 == 60
    index.save(tmp_path)
    assert index.memory_bytes / 2000 == 52
    assert BiGranularIndex.load(tmp_path).memory_bytes / 2000 == 52


def test_refusals_name_what_is_wrong():
    rows, queries = texts(n=100)
    index = BiGranularIndex(64).add(rows)
    with pytest.raises(EtudeError, match=r"vectors must be an array of shape \(N, 64\)"):
        index.add(rows[:, :10])
    with pytest.raises(EtudeError, match=r"queries must be an array of shape \(N, 64\)"):
        index.search(queries[0], 3)
    with pytest.raises(EtudeError, match="vectors, row 5, must be finite"):
        index.add(np.where(np.arange(100)[:, None] == 5, np.nan, rows))
    with pytest.raises(EtudeError, match="ids must differ, got 7 twice"):
        index.add(rows[:2], ids=np.array([500, 7]))
    with pytest.raises(EtudeError, match="ids must differ, got 500 twice"):
        index.add(rows[:2], ids=np.array([500, 500]))
    with pytest.raises(EtudeError, match="ids must be 2 integers"):
        index.add(rows[:2], ids=np.array([1, 2, 3]))
    with pytest.raises(EtudeError, match="ids must be 2 integers"):
        index.add(rows[:2], ids=np.array([0.5, 1.5]))
    assert len(index) == 100  # nothing of a refused part stays
    with pytest.raises(EtudeError, match="k must be at least 1"):
        index.search(queries, 0)
    with pytest.raises(EtudeError, match="fit must be called before anything is added"):
        index.fit(rows)
    with pytest.raises(EtudeError, match="dim must be a multiple of 64 where nothing rotates"):
        BiGranularIndex(100, rotate=False)
    with pytest.raises(EtudeError, match="quantizer must be of dim 10"):
        BiGranularIndex(10, quantizer=quantizer())
    with pytest.raises(EtudeError, match="code_queries must be of shape"):
        index.search(queries, 3, code_queries=queries[:2])
    with pytest.raises(EtudeError, match="index must be fitted"):
        BiGranularIndex(64).save("nowhere")
    with pytest.raises(EtudeError, match="dim must be a multiple of 5"):
        ContrastiveProductQuantizer(12, n_parts=5)
    with pytest.raises(EtudeError, match="codebook must be of shape"):
        ContrastiveProductQuantizer(12, n_parts=3, codebook=torch.zeros(1))


# ------------------------------------------------------------------ folder


@pytest.mark.parametrize(("trained", "rotate"), [(False, True), (False, False), (True, True)])
def test_a_saved_index_answers_the_same(tmp_path, trained, rotate):
    rows, queries = texts()
    model = quantizer(64, n_parts=8, n_centroids=32) if trained else None
    index = BiGranularIndex(
        64, quantizer=model, n_verified=50, code_weight=0.25, rotate=rotate
    ).add(rows)
    before = index.search(queries)
    index.save(tmp_path / "index")
    for one in (index, BiGranularIndex.load(tmp_path / "index", n_threads=2)):
        assert (one.n_verified, one.code_weight, len(one)) == (50, 0.25, 3000)
        for found, expected in zip(one.search(queries), before, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_a_grown_index_writes_its_new_part_only_and_old_readers_stay(tmp_path):
    rows, queries = texts()
    index = BiGranularIndex(64).fit(rows).add(rows[:2000])
    index.save(tmp_path)
    first = {p: p.stat().st_mtime_ns for p in tmp_path.glob("vectors-*")}
    reader = BiGranularIndex.load(tmp_path)
    expected = reader.search(queries)[0]
    grown = BiGranularIndex.load(tmp_path).add(rows[2000:])
    grown.save(tmp_path)
    assert all(p.stat().st_mtime_ns == at for p, at in first.items())
    assert sorted(p.stat().st_size // 256 for p in tmp_path.glob("vectors-*")) == [1000, 2000]
    np.testing.assert_array_equal(reader.search(queries)[0], expected)
    whole = BiGranularIndex(64).fit(rows).add(rows)
    np.testing.assert_array_equal(
        BiGranularIndex.load(tmp_path).search(queries)[0], whole.search(queries)[0]
    )
    grown.save(tmp_path / "copy")
    assert len(BiGranularIndex.load(tmp_path / "copy")) == 3000


def test_a_cut_or_changed_file_is_refused_by_name(tmp_path):
    rows, _ = texts(n=200)
    BiGranularIndex(64).add(rows).save(tmp_path)
    files = sorted(p for p in tmp_path.iterdir() if p.suffix == ".npy")
    assert len(files) == 6  # rotation, center; codes, factors, ids, vectors
    for path in files:
        content = path.read_bytes()
        for bad in (content[:-3], content[:-1] + bytes([content[-1] ^ 1]), b""):
            path.write_bytes(bad)
            with pytest.raises(EtudeError, match=f"{path.name} was cut or changed"):
                BiGranularIndex.load(tmp_path)
        path.write_bytes(content)
    assert len(BiGranularIndex.load(tmp_path)) == 200
    manifest = tmp_path / "index.json"
    manifest.write_text(manifest.read_text().replace('"n_near": 4000', '"n_near": 4001'))
    with pytest.raises(EtudeError, match=r"index.json was cut or changed"):
        BiGranularIndex.load(tmp_path)
    with pytest.raises(EtudeError, match=r"index.json cannot be read"):
        BiGranularIndex.load(tmp_path / "elsewhere")


def test_arrays_that_do_not_fit_together_are_refused(tmp_path):
    rows, _ = texts(n=200)
    BiGranularIndex(64).add(rows).save(tmp_path)
    manifest = tmp_path / "index.json"
    content = json.loads(manifest.read_text())["content"]
    (segment,) = content["segments"]
    segment["ids"], segment["factors"] = segment["factors"], content["arrays"]["center"]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps({"content": content, "sha256": digest}))
    with pytest.raises(EtudeError, match="do not fit together"):
        BiGranularIndex.load(tmp_path)


def test_two_processes_read_one_index(tmp_path):
    rows, queries = texts()
    index = BiGranularIndex(64).add(rows)
    index.save(tmp_path / "index")
    np.save(tmp_path / "queries.npy", queries)
    code = (
        "import sys, numpy as np\n"
        "from etude.retrieval import BiGranularIndex\n"
        "ids, _ = BiGranularIndex.load(sys.argv[1] + '/index').search("
        "np.load(sys.argv[1] + '/queries.npy'))\n"
        "print(int((ids * np.arange(1, 11)).sum()))"
    )
    readers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    expected = int((index.search(queries)[0] * np.arange(1, 11)).sum())
    assert [int(reader.communicate(timeout=200)[0]) for reader in readers] == [expected] * 2
