"""The experiments on losses: what they say of their data and training, and their headline."""

import numpy as np
import pytest
import torch

from etude.core import card_of
from etude.experiments.losses import comp_sum_loss, decoupled_softmax
from etude.lab.data import load_dataset
from etude.losses import CompSumLoss
from etude.tasks.base import split_rows


def test_labels_are_wrong_where_said_and_the_test_part_is_clean():
    digits = load_dataset("digits")
    split = split_rows(digits, 3)
    parts = comp_sum_loss._parts(digits, 3, 0.4)
    wrong = [
        float((part[1].numpy() != digits.y[rows]).mean())
        for part, rows in zip(parts, (split.train, split.validation, split.test), strict=True)
    ]
    assert wrong == pytest.approx([0.4, 0.4, 0.0], abs=2e-3)  # whole rows
    noisy = parts[0][1].numpy()[parts[0][1].numpy() != digits.y[split.train]]
    assert len(np.unique(noisy)) == 10


def test_stacked_networks_train_as_single_ones(monkeypatch):
    monkeypatch.setattr(comp_sum_loss, "CHECKPOINTS", (20, 40))
    parts = comp_sum_loss._parts(load_dataset("digits"), 0, 0.4)
    losses = [CompSumLoss(tau=tau) for tau in (0.5, 1.0, 2.0)]
    together = comp_sum_loss._train(parts, losses, 5e-3, 0)
    alone = [comp_sum_loss._train(parts, [loss], 5e-3, 0)[0] for loss in losses]
    # float32 sums differ in their last bits between the two, which may flip a row or two
    np.testing.assert_allclose(together, alone, atol=0.01)
    assert len(set(together)) == 3


def test_comp_sum_headline(monkeypatch):
    monkeypatch.setattr(comp_sum_loss, "CHECKPOINTS", (5,))
    pairs = comp_sum_loss._pairs(load_dataset("digits", limit=300), 0, 0.4)
    card = card_of("comp_sum_loss")
    assert (pairs[0].metric, pairs[0].baseline_name) == (card.metric, card.baseline)
    assert [pair.setting for pair in pairs][:2] == ["40 % label noise", "40 % label noise, tau=0"]
    assert pairs[0].ours in [pair.ours for pair in pairs[1:]]


def test_queries_have_labels_of_one_group_and_its_words():
    labels, parts = decoupled_softmax._world(0)
    positives = parts["train"].positives
    counts = positives.sum(1)
    assert (counts.min(), counts.max()) == (1, 8)
    groups = torch.arange(500) // 10
    for row in positives[:50]:
        assert len(groups[row].unique()) == 1
    assert torch.all(parts["train"].words.square().sum(1).round() == 30)
    assert torch.all(labels.square().sum(1).round() == 10)
    again, _ = decoupled_softmax._world(0)
    assert torch.equal(labels, again)


def test_multi_label_baselines_by_loops():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    positives = torch.tensor([[True, False, True], [False, True, False]])
    p, q = logits.softmax(1), torch.sigmoid(logits)
    softmax = -(p[0, 0].log() + p[0, 2].log() + p[1, 1].log()) / 2
    torch.testing.assert_close(decoupled_softmax._summed_softmax(logits, positives), softmax)
    right = torch.where(positives, q, 1 - q).log().sum(1)
    torch.testing.assert_close(decoupled_softmax._sigmoids(logits, positives), -right.mean())


def test_decoupled_headline(monkeypatch):
    for name, value in (
        ("N_STEPS", 2), ("TEMPERATURES", (0.1,)), ("LEARNING_RATES", (1e-2,)),
        ("N_QUERIES", {"train": 40, "validation": 20, "test": 20}),
    ):  # fmt: skip
        monkeypatch.setattr(decoupled_softmax, name, value)
    pairs = decoupled_softmax.measure(0)
    card = card_of("decoupled_softmax")
    assert (pairs[0].metric, pairs[0].baseline_name) == (card.metric, card.baseline)
    assert pairs[0].setting == "decoupled"
    assert len(pairs) == 8
