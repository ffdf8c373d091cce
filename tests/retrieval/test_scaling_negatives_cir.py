"""The static bank against slow loops, in-batch InfoNCE and the released code's loss.

Released code: BUAADreamer/SPN4CIR at 2a413f7, clip4cir/models.py: infonce_loss, a cross-entropy
of query times target over tau. Inputs: torch generator of seed 0, float64, three queries and six
targets of width 4, drawn normal in this order and normalized; targets 5, 0, 2; tau 0.02. Ours
were equal to 1e-14.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from etude.core import EtudeError
from etude.retrieval import StaticNegativeBank, TwoStageCIRTrainer, synthesize_triplets

RELEASED, RELEASED_IN_BATCH = 20.183557591902787, 37.7298516691317


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (6, 4))
    drawn = [torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes]
    return [normalize(part, dim=1) for part in drawn]


def test_same_as_the_released_code(sides):
    queries, targets = sides
    bank = StaticNegativeBank().build(targets, torch.arange(6))
    assert bank.loss(queries, torch.tensor([5, 0, 2])).item() == pytest.approx(RELEASED, rel=1e-12)


def test_a_bank_of_the_batch_s_targets_is_in_batch_infonce(sides):
    queries, targets = sides
    bank = StaticNegativeBank().build(targets[:3], torch.arange(3))
    found = bank.loss(queries, torch.arange(3)).item()
    assert found == pytest.approx(RELEASED_IN_BATCH, rel=1e-12)


def test_against_a_slow_loop(sides):
    queries, targets = sides
    bank = StaticNegativeBank(temperature=0.3).build(7 * targets, 10 * torch.arange(6))
    total = 0.0
    for q, own in zip(queries, (4, 1, 3), strict=True):
        parts = [float(torch.exp(q @ t / 0.3)) for t in targets]
        total -= np.log(parts[own] / sum(parts)) / 3
    assert bank.loss(queries, torch.tensor([40, 10, 30])).item() == pytest.approx(total, rel=1e-12)


def test_more_negatives_raise_the_loss(sides):
    queries, targets = sides
    own = torch.arange(3)
    losses = [
        StaticNegativeBank().build(targets[:n], torch.arange(n)).loss(queries, own).item()
        for n in (3, 4, 5, 6)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


def test_equal_pictures_share_a_row(sides):
    queries, targets = sides
    twice = torch.cat([targets, targets[:2]])
    bank = StaticNegativeBank().build(twice, torch.tensor([0, 1, 2, 3, 4, 5, 0, 1]))
    assert bank.vectors_.shape == (6, 4)
    own = torch.tensor([5, 0, 2])
    assert bank.loss(queries, own).item() == pytest.approx(RELEASED, rel=1e-12)


def test_a_random_part_keeps_the_target_and_all_of_the_rest_is_the_whole(sides):
    queries, targets = sides
    own = torch.tensor([5, 0, 2])
    whole = StaticNegativeBank(n_negatives=5).build(targets, torch.arange(6))
    assert whole.loss(queries, own).item() == pytest.approx(RELEASED, rel=1e-12)
    part = StaticNegativeBank(n_negatives=2, temperature=0.5).build(targets, torch.arange(6))
    found = part.loss(queries[:1], own[:1]).item()
    scores = (queries[0] @ targets.T / 0.5).tolist()
    possible = [
        -np.log(np.exp(scores[5]) / sum(np.exp(scores[i]) for i in (5, a, b)))
        for a in range(5) for b in range(a)
    ]  # fmt: skip
    assert min(abs(found - p) for p in possible) < 1e-12


def test_gradients_reach_the_queries_alone(sides):
    queries, targets = (side.clone().requires_grad_() for side in sides)
    bank = StaticNegativeBank(temperature=0.5).build(targets, torch.arange(6))
    own = torch.tensor([5, 0, 2])
    bank.loss(queries, own).backward()
    assert targets.grad is None
    assert queries.grad.abs().sum() > 0
    assert torch.autograd.gradcheck(lambda q: bank.loss(q, own), (queries,))


def problem():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(20, 6, generator=generator)
    texts = torch.randn(12, 3, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = nn.Linear(6, 5), nn.Linear(3, 5)
    reference = torch.arange(12)
    return (images, reference, texts, reference + 4), towers


def test_stage_one_s_first_loss_is_the_in_batch_loss_of_raw_sums():
    (images, reference, texts, target), towers = problem()
    with torch.no_grad():
        asked = normalize(towers[0](images[reference]) + towers[1](texts), dim=1)
        found = normalize(towers[0](images[target]), dim=1)
        want = cross_entropy(asked @ found.T / 0.1, torch.arange(12)).item()
    trainer = TwoStageCIRTrainer(*towers, temperature=0.1, batch_size=12)
    losses = trainer.stage_one(images, reference, texts, target, n_steps=30, lr=1e-2)
    assert losses[0] == pytest.approx(want, rel=1e-5)
    assert losses[-1] < 0.5 * losses[0]


def test_stage_two_moves_the_text_tower_only_and_the_bank_stays_true():
    (images, reference, texts, target), towers = problem()
    before = [w.clone() for w in towers[0].parameters()]
    text_before = towers[1].weight.clone()
    trainer = TwoStageCIRTrainer(*towers, temperature=0.1, batch_size=5)
    losses = trainer.stage_two(images, reference, texts, target, n_steps=60, lr=1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, towers[0].parameters(), strict=True))
    assert all(w.grad is None for w in towers[0].parameters())
    assert not torch.equal(text_before, towers[1].weight)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    used = images[:16]  # references 0..11 and targets 4..15, by the order of equal pixels
    _, picture = torch.unique(used, dim=0, return_inverse=True)
    again = normalize(towers[0](used), dim=1)
    torch.testing.assert_close(trainer.bank_.vectors_[picture], again)


def test_stage_two_encodes_without_dropout_or_moving_statistics():
    (images, reference, texts, target), (linear, text_tower) = problem()
    tower = nn.Sequential(linear, nn.BatchNorm1d(5), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    trainer = TwoStageCIRTrainer(tower, text_tower)
    trainer.stage_two(images, reference, texts, target, n_steps=1)
    assert tower.training
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    stored = {tuple(row) for row in trainer.bank_.vectors_.round(decimals=4).tolist()}
    again = normalize(tower.eval()(images[:16]), dim=1).detach().round(decimals=4).tolist()
    assert stored == {tuple(row) for row in again}


def test_stage_two_stores_equal_pixels_once():
    (images, reference, texts, target), towers = problem()
    images[15] = images[3]
    trainer = TwoStageCIRTrainer(*towers)
    trainer.stage_two(images, reference, texts, target, n_steps=1)
    assert len(trainer.bank_.vectors_) == 15


def test_synthesized_pairs_have_the_asked_ranks_and_both_captions():
    vectors = np.random.default_rng(0).normal(size=(9, 4))
    names = [f"n{i}" for i in range(9)]
    found = synthesize_triplets(names, vectors, ranks=(2, 5), n_targets=2, seed=3)
    assert len(found) == 18
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    forms = set()
    for reference, text, target in found:
        others = [j for j in range(9) if j != reference]
        order = sorted(others, key=lambda j: -unit[reference] @ unit[j])
        assert 2 <= order.index(target) < 5
        a, b = names[reference], names[target]
        texts = [f"{b} instead of {a}", f"Unlike {a}, I want {b}", b]
        forms.add(texts.index(text))
    assert forms == {0, 1, 2}
    assert len({(r, t) for r, _, t in found}) == 18


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StaticNegativeBank(temperature=0.0), "temperature must be positive"),
        (lambda: StaticNegativeBank(n_negatives=-1), "n_negatives must be at least 0"),
        (lambda: StaticNegativeBank().loss(torch.ones(1, 2), torch.zeros(1)), "bank must be built"),
        (lambda: StaticNegativeBank().build(torch.ones(3), torch.arange(3)), "vectors must be"),
        (lambda: StaticNegativeBank().build(torch.ones(3, 2), torch.arange(2)), "labels must be"),
        (
            lambda: (
                StaticNegativeBank()
                .build(torch.ones(3, 2), torch.arange(3))
                .loss(torch.ones(1, 2), torch.tensor([3]))
            ),
            "labels must be of stored pictures",
        ),
        (
            lambda: (
                StaticNegativeBank(n_negatives=3)
                .build(torch.ones(3, 2), torch.arange(3))
                .loss(torch.ones(1, 2), torch.tensor([1]))
            ),
            "n_negatives must be at most 2",
        ),
        (lambda: TwoStageCIRTrainer(nn.Identity(), nn.Identity(), batch_size=1), "batch_size"),
        (lambda: synthesize_triplets(["a"] * 3, np.ones((3, 2)), ranks=(1, 3)), "ranks must be"),
        (lambda: synthesize_triplets(["a"] * 3, np.ones((2, 2)), ranks=(0, 1)), "vectors must be"),
        (
            lambda: synthesize_triplets(["a"] * 3, np.ones((3, 2)), ranks=(0, 1), n_targets=2),
            "n_targets",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()


def test_refusals_of_training():
    triplets, towers = problem()
    with pytest.raises(EtudeError, match="lr must be positive"):
        TwoStageCIRTrainer(*towers).stage_two(*triplets, n_steps=1, lr=0.0)
