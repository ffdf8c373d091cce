"""The protocol's rules, mining by its law, and the combiner beside the released one.

Released code: facebookresearch/genecis at 0c5c968, models/combiner_model.py: Combiner(4, 6, 8)
made after torch.manual_seed(0), in eval mode (ours makes its layers in the same order, so the
weights are equal); image and text features (2, 4) normal by a generator of seed 1, image first.
Ours were equal to 1e-7.
"""

from collections import Counter

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.retrieval import (
    Combiner,
    conditional_recall_at_k,
    genecis_gallery,
    mine_condition_triplets,
)

RELEASED = [
    [-0.5492861866950989, 0.005399666726589203, -0.7964509129524231, 0.25282689929008484],
    [-0.5487948060035706, -0.43581023812294006, -0.6578028202056885, 0.2760239839553833],
]


def test_random_scores_find_k_of_the_gallery():
    scores = np.random.default_rng(0).random((20_000, 15))
    target = np.random.default_rng(1).integers(0, 15, 20_000)
    for k in (1, 2, 3):
        found = conditional_recall_at_k(scores, target, k=k)
        assert found == pytest.approx(k / 15, abs=4 * np.sqrt(k / 15 / 20_000))


def test_against_a_sorted_loop():
    scores = np.random.default_rng(0).normal(size=(30, 7))
    target = np.random.default_rng(1).integers(0, 7, 30)
    for k in (1, 3, 7):
        hits = [t in sorted(range(7), key=lambda j: -row[j])[:k]
                for row, t in zip(scores, target, strict=True)]  # fmt: skip
        assert conditional_recall_at_k(scores, target, k=k) == np.mean(hits)


def test_a_constant_scorer_finds_nothing_before_the_whole_gallery():
    assert conditional_recall_at_k(np.ones((4, 15)), np.zeros(4, int), k=14) == 0.0
    assert conditional_recall_at_k(np.ones((4, 15)), np.zeros(4, int), k=15) == 1.0


@pytest.fixture(scope="module")
def pool():
    every = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4)
    return np.concatenate([every] * 6)


@pytest.mark.parametrize("change", [False, True])
def test_gallery_parts(pool, change):
    wanted = (pool[5, 1] + 1) % 4 if change else None
    rows = genecis_gallery(pool, reference=5, subject=0, factor=1, wanted=wanted, seed=3)
    value = wanted if change else pool[5, 1]
    assert len(set(rows.tolist())) == 15
    assert 5 not in rows
    same, fits = pool[rows, 0] == pool[5, 0], pool[rows, 1] == value
    assert same.tolist() == [True] * 8 + [False] * 7
    assert fits.tolist() == [True] + [False] * 7 + [True] * 7
    shared = (pool[rows][:, 2:] == pool[5, 2:]).sum(axis=1)
    assert shared[0] == 0
    assert (shared[1:8] == 2).all()


def test_neither_input_alone_solves_a_gallery(pool):
    image, text, both = [], [], []
    rng = np.random.default_rng(0)
    for item in range(300):
        reference = int(rng.integers(len(pool)))
        wanted = int((pool[reference, 1] + rng.integers(1, 4)) % 4)
        rows = genecis_gallery(
            pool, reference=reference, subject=0, factor=1, wanted=wanted, seed=item
        )
        noise = 1e-6 * rng.random(15)
        image.append((pool[rows] == pool[reference]).sum(axis=1) + noise)
        text.append((pool[rows, 1] == wanted) + noise)
        both.append((pool[rows, 0] == pool[reference, 0]) * text[-1])
    first = np.zeros(300, int)
    assert conditional_recall_at_k(np.array(image), first) == 0.0
    # the text knows 8 that fit, and no more
    assert conditional_recall_at_k(np.array(text), first) == pytest.approx(1 / 8, abs=0.06)
    assert conditional_recall_at_k(np.array(both), first) == 1.0


def relations(n=60):
    rng = np.random.default_rng(2)
    rows = []
    for image in range(n):
        rows.append((image, f"s{rng.integers(3)}", "with", f"o{rng.integers(4)}"))
        rows.append((image, f"s{rng.integers(3)}", "near", f"o{rng.integers(4)}"))
    return rows


def test_mined_triplets_share_the_subject_and_differ_in_object_and_image():
    rows = relations()
    found = mine_condition_triplets(rows, n_triplets=200, seed=1)
    by_image = {}
    for image, subject, relation, thing in rows:
        by_image.setdefault(image, []).append((subject, f"{relation} {thing}", thing))
    for reference, target, condition in found:
        assert reference != target
        assert any(
            s == s2 and condition == c2 and o != o2
            for s, _, o in by_image[reference]
            for s2, c2, o2 in by_image[target]
        )


def test_mining_follows_the_law_of_the_two_draws():
    # subject a in 6 images: x in 4 of them, y and z in 1 each; too few images of b
    rows = [(i, "a", "with", "x") for i in range(4)]
    rows += [(4, "a", "with", "y"), (5, "a", "with", "z"), (6, "b", "with", "x"),
             (7, "b", "with", "y")]  # fmt: skip
    found = mine_condition_triplets(rows, n_triplets=6000, seed=0)
    counts = Counter((r if r > 3 else 0, condition) for r, _, condition in found)
    # from an x (4 of 6): y or z alike; from y: the object x weighs 4 * 1/4, z weighs 1
    want = {(0, "with y"): 1 / 3, (0, "with z"): 1 / 3, (4, "with x"): 1 / 12,
            (4, "with z"): 1 / 12, (5, "with x"): 1 / 12, (5, "with y"): 1 / 12}  # fmt: skip
    assert set(counts) == set(want)
    for key, share in want.items():
        assert counts[key] / 6000 == pytest.approx(share, abs=4 * np.sqrt(share / 6000))


def test_only_concrete_triplets_are_kept():
    scores = {"s0": 5.0, "s1": 5.0, "o0": 4.9, "o1": 4.9, "o2": 1.0}  # o3 and s2 are unknown
    found = mine_condition_triplets(relations(), n_triplets=100, concreteness=scores, seed=1)
    assert {condition.split()[1] for _, _, condition in found} == {"o0", "o1"}


def test_same_seed_same_triplets():
    first, second = (mine_condition_triplets(relations(), n_triplets=9, seed=4) for _ in "ab")
    assert first == second
    assert first != mine_condition_triplets(relations(), n_triplets=9, seed=5)


def test_combiner_same_as_the_released_one():
    torch.manual_seed(0)
    combiner = Combiner(4, projection_dim=6, hidden_dim=8).eval()
    generator = torch.Generator().manual_seed(1)
    image, text = (torch.randn(2, 4, generator=generator) for _ in "it")
    torch.testing.assert_close(combiner(image, text), torch.tensor(RELEASED), atol=1e-6, rtol=0)


def test_combiner_is_a_gated_sum_where_the_mixed_part_is_nought():
    combiner = Combiner(4, projection_dim=6, hidden_dim=8).double().eval()
    torch.nn.init.zeros_(combiner.out.weight)
    torch.nn.init.zeros_(combiner.out.bias)
    torch.nn.init.zeros_(combiner.gate.weight)
    torch.nn.init.constant_(combiner.gate.bias, np.log(3.0))  # s = 3/4
    image, text = torch.randn(2, 5, 4, dtype=torch.float64)
    want = torch.nn.functional.normalize(0.75 * text + 0.25 * image, dim=1)
    torch.testing.assert_close(combiner(image, text), want)


def test_combiner_has_length_one_gradients_and_dropout_in_training_only():
    combiner = Combiner(4, projection_dim=6, hidden_dim=8).double()
    image, text = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert not torch.equal(combiner(image, text), combiner(image, text))
    combiner.eval()
    torch.testing.assert_close(combiner(image, text).norm(dim=1), torch.ones(5).double())
    inputs = [part.detach().clone().requires_grad_() for part in (image, text)]
    assert torch.autograd.gradcheck(combiner, inputs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conditional_recall_at_k(np.ones(3), np.zeros(3)), "scores must be"),
        (lambda: conditional_recall_at_k(np.full((1, 2), np.nan), np.zeros(1, int)), "finite"),
        (lambda: conditional_recall_at_k(np.ones((2, 3)), np.zeros(2, int), k=4), r"in 1\.\.3"),
        (lambda: conditional_recall_at_k(np.ones((2, 3)), np.array([0, 3])), "target must be"),
        (lambda: mine_condition_triplets([(0, "a", "on", "b")], n_triplets=1), "relations must"),
        (lambda: mine_condition_triplets(relations(), n_triplets=0), "n_triplets"),
        (
            lambda: mine_condition_triplets(relations(), n_triplets=1, concreteness={}, n_draws=5),
            "no concrete triplet in 5 draws",
        ),
        (lambda: Combiner(4, dropout=1.0), "dropout must be in"),
        (lambda: Combiner(4, hidden_dim=0), "hidden_dim must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": 2000}, "reference must be a row"),
        ({"factor": 0}, "factor must be another column"),
        ({"subject": 4}, "subject must be a column"),
        ({"wanted": 0}, "wanted must be another value"),
        ({"n_distractors": 1}, "n_distractors must be at least 2"),
        ({"wanted": 9}, "the pool has 0 of 1 images"),
    ],
)
def test_refusals_of_a_gallery(pool, change, message):
    given = {"reference": 0, "subject": 0, "factor": 1} | change
    with pytest.raises(EtudeError, match=message):
        genecis_gallery(pool, **given)
