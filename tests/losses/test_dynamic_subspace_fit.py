"""What the trainer of dynamic subspace learners does around a split, step by step."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.losses import DynamicSubspaceEmbedding, SubspaceMarginTrainer

MODULE = "etude.losses.dynamic_subspace_learners"
X = torch.randn(160, 6, generator=torch.Generator().manual_seed(3))
Y = torch.arange(160) % 8
HALVES = np.arange(160) // 80


def trainer(n_learners=1, **changes):
    head = DynamicSubspaceEmbedding(
        6, out_dim=24, n_learners=n_learners, generator=torch.Generator().manual_seed(0)
    )
    settings = {"n_epochs": 3, "joint_epoch": 9, "patience": 1, "lr": 0.01, **changes}
    return SubspaceMarginTrainer(nn.Identity(), head=head, **settings)


@pytest.fixture
def later_neurons_matter(monkeypatch):
    """Scores that rise along the neurons; returns the activations and gradients it was given."""
    seen = []

    def scores(activations, gradients):
        seen.append((activations, gradients))
        return torch.linspace(0, 1, activations.shape[1])

    monkeypatch.setattr(f"{MODULE}.neuron_scores", scores)
    return seen


def test_adam_forgets_the_new_rows_only(monkeypatch, later_neurons_matter):
    made = []

    def adam(*arguments, **options):
        made.append(torch.optim.Adam(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(f"{MODULE}.Adam", adam)
    fitted = trainer(n_epochs=2)  # the best at 0, the split at 1, and no step after it
    fitted.fit(X, Y, lambda: 0.5)
    assert fitted.head.owner.tolist() == [1] * 12 + [0] * 12
    for parameter in fitted.head.layer.parameters():
        for name in ("exp_avg", "exp_avg_sq"):
            state = made[0].state[parameter][name].reshape(24, -1)
            assert (state[:12] == 0).all()
            assert (state[12:] != 0).all()


def test_data_are_clustered_again_in_the_epoch_after_a_split(monkeypatch, later_neurons_matter):
    asked = []

    def clusters(self, x, last, k, rng):
        asked.append((k, last.tolist()))
        return HALVES

    monkeypatch.setattr(SubspaceMarginTrainer, "_clusters", clusters)
    fitted = trainer(n_epochs=5, recluster_every=100)
    fitted.fit(X, Y, lambda: 0.5)
    assert fitted.n_learners_.tolist() == [1, 2, 2, 2, 2]
    assert asked == [(2, [0] * 160)]  # in epoch 2, from one cluster, and not again


def test_the_last_learners_own_batches_score_its_neurons(later_neurons_matter):
    fitted = trainer(n_learners=2)
    adam = torch.optim.Adam(fitted.head.parameters(), lr=0.01)
    fitted._epoch(X, Y, HALVES, False, adam, np.random.default_rng(0))
    activations, gradients = later_neurons_matter[0]
    assert activations.shape == gradients.shape == (2 * 32, 12)  # 80 rows are two batches of 32
    torch.testing.assert_close(activations.norm(dim=1), torch.ones(64))
    assert gradients.abs().sum(dim=0).min() > 0


def test_the_joint_phase_trains_every_neuron():
    fitted = trainer(n_learners=2, weight_decay=0.0)
    before = fitted.head.layer.weight.detach().clone()
    adam = torch.optim.Adam(fitted.head.parameters(), lr=0.1)
    fitted._epoch(X, Y, np.zeros(160, np.int64), True, adam, np.random.default_rng(0))
    assert ((fitted.head.layer.weight - before).abs().amax(dim=1) > 0).all()
