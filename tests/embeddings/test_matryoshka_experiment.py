"""The Matryoshka experiment: its headline, and that a network of one size is plain."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import card_of
from etude.experiments.embeddings import matryoshka_representation as experiment
from etude.lab.data import load_dataset


@pytest.fixture
def parts():
    return experiment._parts(load_dataset("digits", limit=400), 0)


def test_headline_and_settings(monkeypatch):
    monkeypatch.setattr(experiment, "N_STEPS", 3)
    pairs = experiment._pairs(load_dataset("digits", limit=400), 0)
    card = card_of("matryoshka_representation")
    assert (pairs[0].metric, pairs[0].baseline_name) == (card.metric, card.baseline)
    assert pairs[0].setting == "dim=8"
    found = {(pair.baseline_name, pair.setting) for pair in pairs}
    assert len(found) == len(pairs) == 6 + 6 + 1
    ours = {pair.ours for pair in pairs if pair.setting == "dim=8"}
    assert len(ours) == 1  # one network, whatever it is compared with


def test_one_size_trains_by_cross_entropy(parts):
    x, y = parts[0]
    network = experiment._Network(64, 10, (8,), 0)
    z = network.encoder(x)
    expected = F.cross_entropy(network.loss.classify(z), y)
    torch.testing.assert_close(network.loss(z, y), expected)
    assert z.shape == (len(x), 8)


def test_both_arms_share_the_hidden_layer(parts):
    nested = experiment._Network(64, 10, experiment.SIZES, 0)
    alone = experiment._Network(64, 10, (8,), 0)
    assert torch.equal(nested.encoder[0].weight, alone.encoder[0].weight)


def test_refitting_reads_codes_that_tell_the_class(parts):
    codes = [np.eye(10)[y.numpy()] for _, y in parts]
    assert experiment._refitted(codes, parts) == 1.0
