"""The shared store against SipHash written in plain integers, its identities and official values.

Official hashing: TensorFlow Recommenders (cf1dafa) hashes by the Keras layer
``Hashing(num_bins, salt=[feature, lookup])``. Its documentation prints, for the texts A to E in 3
bins, 1 2 1 0 2 with the salt [133, 137] and 0 0 2 1 0 with the salt [133, 133]; reproduced
exactly. SipHash itself is compared with the vector of its paper's appendix (key 00..0f, message
00..0e, result a129ca6149be45e5).
"""

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.embeddings import (
    SeparateTables,
    UnifiedEmbedding,
    multiplexed_hash,
    proportional_rows,
)
from etude.embeddings.unified_embedding import _siphash

MASK = (1 << 64) - 1


def slow_siphash(message, k0, k1):
    """SipHash-2-4 of bytes with Python's integers, step by step from the paper."""
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D,
         k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]  # fmt: skip

    def left(x, b):
        return ((x << b) | (x >> (64 - b))) & MASK

    def sip_round():
        v[0] = (v[0] + v[1]) & MASK
        v[1] = left(v[1], 13) ^ v[0]
        v[0] = left(v[0], 32)
        v[2] = (v[2] + v[3]) & MASK
        v[3] = left(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & MASK
        v[3] = left(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & MASK
        v[1] = left(v[1], 17) ^ v[2]
        v[2] = left(v[2], 32)

    padded = message + bytes(7 - len(message) % 8) + bytes([len(message) & 255])
    for i in range(0, len(padded), 8):
        word = int.from_bytes(padded[i : i + 8], "little")
        v[3] ^= word
        sip_round()
        sip_round()
        v[0] ^= word
    v[2] ^= 0xFF
    for _ in range(4):
        sip_round()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def store(**changes):
    arguments = {"n_lookups": (2, 1, 3), "n_rows": 16, "n_tables": 1} | changes
    return UnifiedEmbedding(4, generator=torch.Generator().manual_seed(0), **arguments)


def test_hashes_equal_the_official_layers_documented_values():
    letters = list("ABCDE")
    salted = [multiplexed_hash(letters, feature=133, lookup=s, n_rows=3) for s in (137, 133)]
    assert salted[0].tolist() == [1, 2, 1, 0, 2]
    assert salted[1].tolist() == [0, 0, 2, 1, 0]


def test_siphash_equals_its_papers_vector_and_the_slow_one():
    key = [int.from_bytes(bytes(range(i, i + 8)), "little") for i in (0, 8)]
    block = np.frombuffer(bytes([*range(15), 15]), dtype="<u8")[None]
    assert (
        int(_siphash(block, *key)[0]) == 0xA129CA6149BE45E5 == slow_siphash(bytes(range(15)), *key)
    )
    values = [0, 7, -3, 1234567, 12345678, 10**15, -(10**16), 2**63 - 1]
    texts = [str(v) for v in values] + ["", "ä" * 40, "x" * 300]
    for items, have in ((np.array(values), map(str, values)), (texts, texts)):
        want = [slow_siphash(t.encode(), 5, 2) % 1009 for t in have]
        assert multiplexed_hash(items, feature=5, lookup=2, n_rows=1009).tolist() == want


def test_rows_are_concatenated_by_feature_then_lookup_and_dealt_in_turn():
    layer = store(n_tables=4)
    ids = torch.tensor([[3, 3, 3], [10**12, 0, -1]])
    got = layer(ids).detach()
    assert got.shape == (2, 4 * 6)
    for b in range(2):
        want, dealt = [], 0
        for f, t in enumerate((2, 1, 3)):
            for c in range(t):
                row = slow_siphash(str(int(ids[b, f])).encode(), f, c) % 16
                want.append(layer.table.detach()[(dealt % 4) * 16 + row])
                dealt += 1
        assert torch.equal(got[b], torch.cat(want))


def test_parameters_do_not_grow_with_features():
    assert sum(p.numel() for p in store(n_lookups=(1,) * 50, n_tables=3).parameters()) == 3 * 16 * 4


def test_the_gradient_of_a_row_is_the_sum_over_separate_copies():
    layer, ids = store().double(), torch.randint(0, 99, (40, 3))
    rows = layer.rows(ids)
    weight = torch.randn(40, 24, dtype=torch.float64)
    (layer(ids).tanh() * weight).sum().backward()
    summed = torch.zeros_like(layer.table)
    for lookup in range(6):  # a copy of the store for each lookup
        copy = layer.table.detach().clone().requires_grad_()
        part = copy[rows[:, lookup]].tanh() * weight[:, 4 * lookup : 4 * lookup + 4]
        part.sum().backward()
        summed += copy.grad
    torch.testing.assert_close(layer.table.grad, summed, rtol=1e-12, atol=1e-12)


def test_without_collisions_training_is_that_of_separate_tables():
    ids = torch.stack([torch.arange(6), torch.arange(6) + 3], dim=1)
    one = UnifiedEmbedding(3, n_lookups=(1, 1), n_rows=1 << 14)
    rows = one.rows(ids)
    assert len(rows.unique()) == 12
    two = SeparateTables(3, n_lookups=(1, 1), n_rows=(9, 9), n_values=(9, 9))
    with torch.no_grad():
        two.table[two.rows(ids)] = one.table[rows]
    for layer in (one, two):
        optimizer = torch.optim.Adagrad(layer.parameters(), lr=0.1)
        head = torch.linspace(-1, 1, 6)
        for _ in range(5):
            optimizer.zero_grad()
            ((layer(ids) @ head - torch.arange(6.0)) ** 2).mean().backward()
            optimizer.step()
    torch.testing.assert_close(one(ids), two(ids))


def test_two_lookups_leave_few_values_alike():
    values = np.arange(400)
    rows = np.stack([multiplexed_hash(values, lookup=c, n_rows=64) for c in (0, 1)])
    pairs = len(values) * (len(values) - 1) / 2
    single = sum(n * (n - 1) / 2 for n in np.unique(rows[0], return_counts=True)[1]) / pairs
    both = np.unique(rows, axis=1, return_counts=True)[1]
    assert single == pytest.approx(1 / 64, rel=0.15)
    assert sum(n * (n - 1) / 2 for n in both) / pairs == pytest.approx(1 / 64**2, rel=0.9)


def test_a_features_salt_moves_that_feature_alone():
    ids = torch.randint(0, 1000, (50, 2))
    first = store(n_lookups=(2, 2)).rows(ids)
    swapped = store(n_lookups=(2, 2)).rows(ids.flip(1))
    assert not torch.equal(first[:, :2], swapped[:, 2:])  # the same ids, another feature's salt
    assert torch.equal(first[:, :2], store(n_lookups=(2, 1)).rows(ids)[:, :2])


def test_separate_tables_keep_features_apart_and_small_ones_whole():
    layer = SeparateTables(2, n_lookups=(1, 2), n_rows=(10, 5), n_values=(1000, 5))
    rows = layer.rows(torch.stack([torch.arange(5) * 77, torch.arange(5)], dim=1))
    want = multiplexed_hash(np.arange(5) * 77, n_rows=10)
    assert rows[:, 0].tolist() == want.tolist()
    assert rows[:, 1].tolist() == rows[:, 2].tolist() == [10, 11, 12, 13, 14]


def test_separate_tables_hash_every_lookup_by_a_function_of_its_own():
    layer = SeparateTables(2, n_lookups=(2, 1), n_rows=(50, 30))
    rows = layer.rows(torch.arange(40)[:, None].expand(40, 2))
    for place, (f, c, n, first) in enumerate([(0, 0, 50, 0), (0, 1, 50, 0), (1, 0, 30, 50)]):
        want = [first + slow_siphash(str(v).encode(), f, c) % n for v in range(40)]
        assert rows[:, place].tolist() == want


@pytest.mark.parametrize("dim", [4, 64])
def test_rows_start_normal_with_a_deviation_of_one_over_the_root_of_the_width(dim):
    table = UnifiedEmbedding(dim, n_rows=4000).table.detach() * dim**0.5
    assert table.abs().max() <= 2.0
    # a normal cut at two deviations has 0.8796 of its deviation
    assert float(table.std()) == pytest.approx(0.8796, rel=0.03)
    assert abs(float(table.mean())) < 0.03


def test_proportional_rows_share_the_total():
    assert proportional_rows((300, 100), 40) == (30, 10)
    assert proportional_rows((10**6, 1, 1, 1), 5) == (2, 1, 1, 1)
    assert proportional_rows((3, 2), 10) == (3, 2)
    assert proportional_rows((500, 260, 240), 10) == (5, 3, 2)  # 2.6 has the largest remainder
    assert proportional_rows((400, 100), 30, power=0.5) == (20, 10)
    assert proportional_rows((400, 4), 100, power=0.0) == (96, 4)
    for total in (6, 77, 400, 26_260):
        rows = proportional_rows((20_000, 5_000, 1_000, 200, 50, 10), total)
        assert sum(rows) == total
        assert min(rows) >= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: store(n_lookups=()), "n_lookups must be positive numbers"),
        (lambda: store(n_lookups=(1, 0)), "n_lookups must be positive numbers"),
        (lambda: store(n_rows=0), "n_rows must be in 1"),
        (lambda: store()(torch.zeros(2, 3)), "ids must be whole numbers"),
        (lambda: store()(torch.zeros(2, 4, dtype=torch.int64)), r"ids must be of shape \(B, 3\)"),
        (lambda: SeparateTables(2, n_lookups=(1, 1), n_rows=(3,)), "n_rows must be 2 positive"),
        (
            lambda: SeparateTables(2, n_rows=(3,), n_values=(3,))(torch.tensor([[3]])),
            r"ids must be in 0\.\.2 for feature 0",
        ),
        (lambda: multiplexed_hash(np.array([0.5])), "ids must be"),
        (lambda: proportional_rows((5, 5), 1), "total must be at least 2"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()


def test_no_sample_gives_no_row():
    assert store()(torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 24)
