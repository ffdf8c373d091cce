"""Every layer against its equation in plain loops, its bytes counted tensor by tensor, the bench.

The released code (HugoZHL/Hetu, 866226e) runs on its own engine; compared with it by reading are
the order of division and remainder in (3) and (4), the product in (3), the cores' shapes and the
choice of the collision number (smallest that fits).
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from etude.core import EtudeError
from etude.core.tables import LAYERS, PRIME, SPREAD
from etude.embeddings import EmbeddingCompressionBench, compressed_embedding, memory_bytes
from etude.embeddings.embedding_compression_bench import _Network

N, DIM = 900, 8
COUNTS = torch.randperm(N, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, N, (60,), generator=torch.Generator().manual_seed(2))


def layer(kind, ratio=2.0, **changes):
    arguments = {"sizes": (800, 100), "dim": DIM, "n_bytes": int(N * DIM * 4 / ratio)}
    return compressed_embedding(kind, **(arguments | {"frequencies": COUNTS} | changes))


def clicks(n=400, sizes=(300, 20)):
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, size, n) for size in sizes], axis=1)
    odds = np.where(ids[:, 0] % 2 == ids[:, 1] % 2, 0.9, 0.1)
    return torch.from_numpy(ids), torch.from_numpy((rng.random(n) < odds).astype(np.float32))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("ratio", [1.9, 3.0])
def test_memory_is_within_the_budget_and_most_of_it(kind, ratio):
    # the centroids alone are 8 kB, so codes ask for more ids
    sizes = (6000, 100) if kind == "product_codes" else (800, 100)
    n_bytes = int(sum(sizes) * DIM * 4 / ratio)
    counts = torch.arange(sum(sizes))
    built = compressed_embedding(kind, sizes=sizes, dim=DIM, n_bytes=n_bytes, frequencies=counts)
    built.eval()
    before = built(IDS).detach()
    built.finish()
    torch.testing.assert_close(built(IDS), before)  # finishing changes no answer
    least = {
        "product_codes": 0.3,
        "int8": 0.4,
        "mixed_dimension": 0.6,
        "quotient_remainder": 0.7,
    }.get(kind, 0.8)
    assert least * n_bytes <= memory_bytes(built) <= n_bytes


def test_memory_counts_codes_scales_and_seeds_and_shared_tensors_once():
    int8 = layer("int8")
    int8.finish()
    assert memory_bytes(int8) == N * DIM + 4
    robe = layer("robe")
    assert memory_bytes(robe) == robe.array.numel() * 4 + 6 * 8
    tied = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    tied[1].weight = tied[0].weight
    assert memory_bytes(tied) == (9 + 3 + 3) * 4


def test_hash_with_all_rows_is_the_full_table():
    built = layer("hash", ratio=1.0)
    assert torch.equal(built(torch.arange(N)), built.table)
    small = layer("hash", ratio=4.0)
    assert torch.equal(small(IDS), small.table[IDS % (N // 4)])


def test_quotient_and_remainder_are_multiplied_and_unique():
    built = layer("quotient_remainder", ratio=4.0)
    r = len(built.remainders)
    for x in IDS.tolist():
        want = built.quotients[x // r] * built.remainders[x % r]
        assert torch.equal(built(torch.tensor([x]))[0], want)
    assert len({(x // r, x % r) for x in range(N)}) == N
    rows = N // 4
    assert -(-N // r) + r <= rows < -(-N // (r - 1)) + r - 1  # the smallest r that fits


def test_tensor_train_is_a_product_of_matrices():
    built = layer("tensor_train")
    a, b, c = (core.detach().double() for core in built.cores)
    assert len(a) * len(b) * len(c) >= N
    for x in IDS.tolist()[:10]:
        i, j, k = x % len(a), x // len(a) % len(b), x // len(a) // len(b)
        want = [
            float(a[i][0, p] @ b[j][:, q] @ c[k][:, s, 0])
            for p in range(a.shape[2]) for q in range(b.shape[2]) for s in range(c.shape[2])
        ]  # fmt: skip
        np.testing.assert_allclose(built(torch.tensor([x]))[0].tolist(), want, rtol=1e-4, atol=1e-6)


def test_robe_takes_signed_entries_of_one_array():
    built = layer("robe", ratio=20.0)
    (a, b, c), (a2, b2, c2) = built.coefficients.tolist()
    array, got = built.array.tolist(), built(IDS).tolist()
    for row, x in zip(got, IDS.tolist(), strict=True):
        for d, value in enumerate(row):
            place = (a * x + b * d + c) % PRIME % len(array)
            sign = 1 if (a2 * x + b2 * d + c2) % PRIME % 2 else -1
            assert value == sign * array[place]
    assert {np.sign(v / w) for r in got for v, w in zip(r, map(abs, r), strict=True)} == {-1, 1}


def test_adaptive_gives_frequent_ids_rows_of_their_own():
    built = layer("adaptive", ratio=4.0)
    order = COUNTS.argsort(descending=True)
    own = order[: len(built.own)]
    assert sorted(own.tolist()) == built.frequent.tolist()
    vectors = built(torch.arange(N))
    assert len(vectors[own].unique(dim=0)) == len(own)
    rest = order[len(own) :]
    assert torch.equal(vectors[rest], built.shared[rest % len(built.shared)])


def test_int8_rounds_within_half_a_step_and_passes_the_gradient():
    built = layer("int8")
    with torch.no_grad():
        built.table[0] = torch.linspace(-3, 3, DIM)  # beyond 127 steps of 0.01
    out = built(torch.arange(N))
    found = out.detach()
    inside = built.table.abs() <= 1.27
    assert ((found - built.table).abs()[inside] <= 0.005 + 1e-6).all()
    assert float(found[0].abs().max()) == pytest.approx(1.27)
    out.sum().backward()
    assert torch.equal(built.table.grad, torch.ones(N, DIM))


def test_product_codes_are_nearest_and_rare_ids_have_fewer_choices():
    built = layer(
        "product_codes", sizes=(6000, 100), n_bytes=40_000, frequencies=torch.arange(6100)
    )
    parts = built.table.detach().reshape(6100, len(built.centroids), -1)
    codes = built.nearest(torch.arange(6100))
    frequent = torch.arange(6100) >= 6100 - 610
    assert torch.equal(built.frequent, frequent)
    for x in (0, 77, 5489, 5490, 6099):
        for m in range(len(built.centroids)):
            choices = built.centroids[m] if frequent[x] else built.centroids[m][:64]
            assert codes[x, m] == (choices - parts[x, m]).square().sum(dim=1).argmin()
    assert codes[~frequent].max() < 64 <= codes[frequent].max()
    out = built(IDS)
    out.sum().backward()  # straight through: the table's own gradient, none for centroids
    assert built.table.grad.sum() == len(IDS) * DIM
    assert built.centroids.grad is None
    built(IDS)
    built.penalty.backward()  # and the penalty moves the centroids alone
    assert built.centroids.grad.abs().sum() > 0
    assert built.table.grad.sum() == len(IDS) * DIM


def test_mixed_dimension_narrows_the_larger_field():
    built = layer("mixed_dimension")
    wide, narrow = built.tables[1], built.tables[0]
    assert wide.shape == (100, DIM)
    assert narrow.shape[1] < DIM
    want = [narrow[x] @ built.projections[0] if x < 800 else wide[x - 800] for x in IDS.tolist()]
    torch.testing.assert_close(built(IDS), torch.stack(want))


def test_deep_hash_depends_on_its_hashes():
    built = layer("deep_hash").eval()
    (a, b), seen = built.coefficients.tolist(), []
    built.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    built(IDS)
    want = [[(p * x + q) % PRIME % 10**6 * 2 / 999_999 - 1 for p, q in zip(a, b, strict=True)]
            for x in IDS.tolist()]  # fmt: skip
    np.testing.assert_allclose(seen[0].numpy(), want, atol=1e-5)
    assert seen[0].min() >= -1
    assert seen[0].max() <= 1


@pytest.mark.parametrize("kind", LAYERS)
def test_the_bench_runs_every_kind_and_counts_everything(kind):
    bench = EmbeddingCompressionBench(8, n_values=(4000, 300, 20), n_steps=3, rates=(0.01,))
    parts = [clicks(sizes=(4000, 300, 20))] * 3
    line = bench.run(kind, 3.0, *parts)
    assert line.n_bytes <= 4320 * 8 * 4 / 3
    assert line.n_bytes > 20 * 8 * 4
    assert line.train_bytes > line.n_bytes
    if kind in ("int8", "product_codes"):  # the float table and its two moments
        assert line.train_bytes > 3 * 4000 * 8 * 4
    again = bench.run(kind, 3.0, *parts)
    assert (again.auroc, again.log_loss) == (line.auroc, line.log_loss)


def test_the_bench_learns_and_measures_rightly(monkeypatch):
    logits = {}
    module = "etude.embeddings.embedding_compression_bench._auroc"
    monkeypatch.setattr(module, lambda logit, y: logits.update(x=logit, y=y) or 0.5)
    bench = EmbeddingCompressionBench(8, n_values=(300, 20), n_steps=60, batch_size=64)
    line = bench.run("hash", 1.0, clicks(), clicks(), clicks())
    monkeypatch.undo()
    from etude.embeddings.embedding_compression_bench import _auroc

    rounded = (logits["x"] * 2).round()  # with ties
    assert _auroc(rounded, logits["y"]) == pytest.approx(roc_auc_score(logits["y"], rounded))
    assert roc_auc_score(logits["y"], logits["x"]) > 0.9
    want = F.binary_cross_entropy_with_logits(logits["x"], logits["y"])
    assert line.log_loss == pytest.approx(float(want), abs=0.3)  # of the better of two rates
    assert line.n_bytes == 320 * 8 * 4
    assert line.held_loss == pytest.approx(line.log_loss)  # here they are the same samples


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "deep_hash"])
def test_vectors_of_every_kind_start_with_one_deviation(kind):
    sizes = (6000, 100)
    built = compressed_embedding(kind, sizes=sizes, dim=16, n_bytes=200_000, seed=3)
    if kind == "product_codes":  # answers are centroids, nearer to 0 than the rows they stand for
        starts = [built.table, built.centroids]
    else:
        first, last = torch.arange(6000), torch.arange(6000, 6100)
        starts = [built(first), built(last)] if kind == "mixed_dimension" else [built(first)]
    for start in starts:
        assert float(start.detach().std()) == pytest.approx(SPREAD, rel=0.2)


def test_large_fields_are_one_space_of_ids_and_small_ones_keep_their_tables():
    bench = EmbeddingCompressionBench(8, n_values=(300, 200, 250))
    ids, _ = clicks(sizes=(300, 200, 250))
    tables = _Network(bench, "hash", 1.0, ids).table
    table, (whole,) = tables.layer.table, tables.whole
    assert (table.shape, whole.shape) == ((550, 8), (200, 8))  # 200 is not above the threshold
    want = torch.cat([table[ids[:, 0]], table[300 + ids[:, 2]], whole[ids[:, 1]]], dim=1)
    assert torch.equal(tables(ids), want)
    # frequencies are counted in that space, too: all rows say 7 and 9
    same = torch.tensor([[7, 0, 9]]).expand(5, 3)
    own = _Network(bench, "adaptive", 1.9, same).table.layer.frequent
    assert {7, 309} <= set(own.tolist())
    assert len(own) < 300


def test_centroids_learn_in_training_and_only_by_their_penalty():
    bench = EmbeddingCompressionBench(8, n_values=(4000, 300, 20), n_steps=3)
    ids, y = clicks(sizes=(4000, 300, 20))
    net = _Network(bench, "product_codes", 3.0, ids)
    layer = net.table.layer
    before = layer.centroids.detach().clone()
    bench._train(net, 0.01, ids, y)
    assert (layer.centroids - before).abs().max() > 0.005


def test_answers_do_not_depend_on_the_batch():
    bench = EmbeddingCompressionBench(8, n_values=(4000, 20), n_steps=3)
    ids, y = clicks(sizes=(4000, 20))
    net = _Network(bench, "deep_hash", 3.0, ids)
    bench._train(net, 0.01, ids, y)
    net.finish()
    torch.testing.assert_close(net(ids[:5]), net(ids)[:5])


def test_the_rate_is_the_one_with_the_least_held_loss():
    parts = [clicks()] * 3
    for rates in ((1e-5, 1e-2), (1e-2, 1e-5)):
        bench = EmbeddingCompressionBench(8, n_values=(300, 20), n_steps=40, rates=rates)
        assert bench.run("hash", 1.0, *parts).lr == 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compressed_embedding("zip"), "kind must be one of hash"),
        (lambda: compressed_embedding("int8", n_bytes=1000), "int8 does not fit into 1,000 bytes"),
        (lambda: compressed_embedding("product_codes", n_bytes=9999), "codes of one byte"),
        (lambda: compressed_embedding("quotient_remainder", n_bytes=999), "must be 200 rows, got"),
        (
            lambda: EmbeddingCompressionBench(n_values=(5, 9)),
            "n_values must be positive, one above",
        ),
        (lambda: EmbeddingCompressionBench(rates=(2.0,)), r"rates must be in \(0, 1\)"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()


def test_the_bench_refuses_bad_data():
    bench = EmbeddingCompressionBench(8, n_values=(300, 20))
    ids, y = clicks()
    with pytest.raises(EtudeError, match=r"ids must be below n_values"):
        bench.run("hash", 2.0, (ids + 100, y), (ids, y), (ids, y))
    with pytest.raises(EtudeError, match=r"clicks must be \(400,\) of 0 and 1, both there"):
        bench.run("hash", 2.0, (ids, y), (ids, y), (ids, torch.ones(400)))
