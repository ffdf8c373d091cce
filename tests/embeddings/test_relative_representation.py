"""Relative representations against loops, their theorem, and the released code.

Released code: lucmos/relreps at 627ed13, `relative_projection` of experiments/demo. Inputs:
numpy default_rng(0), normal(size=(4, 6)) samples, then normal(size=(5, 6)) anchors, float64. The
numbers are its first row, the sum of all entries and the sum of their squares; for bins of 0.1
the second row and the sum after the rounding of the release's attention module. Ours were equal
to 1e-15.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from etude.core import EtudeError
from etude.embeddings import RelativeProjection, anchor_select, stitch

RELEASED = [
    -0.09974939866434357, -0.11257764687814956, 0.7262181112647279, 0.04767042363120383,
    0.1598047031962668,
]  # fmt: skip
RELEASED_SUM, RELEASED_SQUARES = 1.564665317552794, 4.314019172347523
ROUNDED, ROUNDED_SUM = [0.9, -0.8, -0.4, 0.3, 0.8], 1.5


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    return torch.tensor(rng.normal(size=(4, 6))), torch.tensor(rng.normal(size=(5, 6)))


def rotation(seed, dim=6):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(dim, dim)))[0]
    return torch.tensor(q)


def test_equation_by_loops(pair):
    x, anchors = (one.numpy() for one in pair)
    ours = RelativeProjection()(*pair).numpy()
    for i in range(4):
        for j in range(5):
            dot = sum(x[i, d] * anchors[j, d] for d in range(6))
            lengths = math.sqrt(sum(x[i] ** 2)) * math.sqrt(sum(anchors[j] ** 2))
            assert ours[i, j] == pytest.approx(dot / lengths, rel=1e-12)


def test_same_as_the_released_code(pair):
    ours = RelativeProjection()(*pair)
    np.testing.assert_allclose(ours[0], RELEASED, rtol=1e-12)
    assert float(ours.sum()) == pytest.approx(RELEASED_SUM, rel=1e-12)
    assert float((ours**2).sum()) == pytest.approx(RELEASED_SQUARES, rel=1e-12)


def test_same_rounding_as_the_released_code(pair):
    ours = RelativeProjection(bin_size=0.1)(*pair)
    np.testing.assert_allclose(ours[1], ROUNDED, rtol=1e-12)
    assert float(ours.sum()) == pytest.approx(ROUNDED_SUM, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_theorem_rotations_and_scales_change_nothing(pair, scale):
    x, anchors = pair
    q = rotation(1)
    ours = RelativeProjection()(scale * x @ q, scale * anchors @ q)
    torch.testing.assert_close(ours, RelativeProjection()(x, anchors), rtol=0, atol=1e-14)


def test_a_reflection_and_a_scale_for_each_sample_change_nothing(pair):
    x, anchors = pair
    lengths = torch.tensor([[0.1], [3.0], [7.0], [1.0]], dtype=torch.float64)
    mirror = torch.ones(6, dtype=torch.float64)
    mirror[2] = -1
    ours = RelativeProjection()(lengths * x * mirror, anchors * mirror)
    torch.testing.assert_close(ours, RelativeProjection()(x, anchors), rtol=0, atol=1e-14)


def test_theorem_a_translation_and_a_stretch_do(pair):
    x, anchors = pair
    plain = RelativeProjection()(x, anchors)
    assert (RelativeProjection()(x + 1, anchors + 1) - plain).abs().max() > 0.3
    stretch = torch.linspace(1, 3, 6, dtype=torch.float64)
    assert (RelativeProjection()(x * stretch, anchors * stretch) - plain).abs().max() > 0.05
    # and so does turning the samples alone: the anchors must be the same encoder's
    assert (RelativeProjection()(x @ rotation(1), anchors) - plain).abs().max() > 0.3


def test_anchors_are_one_to_themselves_and_their_order_is_that_of_the_coordinates(pair):
    x, anchors = pair
    itself = RelativeProjection()(anchors, anchors)
    np.testing.assert_allclose(itself.diagonal(), 1.0, rtol=1e-14)
    order = [3, 0, 4, 1, 2]
    torch.testing.assert_close(
        RelativeProjection()(x, anchors[order]), RelativeProjection()(x, anchors)[:, order]
    )


def test_gradients_reach_the_samples_and_never_the_anchors(pair):
    x, anchors = (one.clone().requires_grad_() for one in pair)
    assert torch.autograd.gradcheck(lambda z: RelativeProjection()(z, anchors), x)
    RelativeProjection()(x, anchors).sum().backward()
    assert anchors.grad is None
    plain = x.grad.clone()
    x.grad = None
    RelativeProjection(bin_size=0.1)(x, anchors).sum().backward()
    torch.testing.assert_close(x.grad, plain)  # (3) has the gradient of (1)


def test_zeros_stay_finite():
    x = torch.zeros(2, 3, requires_grad=True)
    out = RelativeProjection()(x, torch.eye(3))
    out.sum().backward()
    assert (out == 0).all()
    assert torch.isfinite(x.grad).all()


def test_stitching_is_exact_where_encoders_differ_by_a_rotation_and_a_scale(pair):
    x, anchors = pair
    one, other = (nn.Linear(6, 6, bias=False).double() for _ in range(2))
    with torch.no_grad():
        other.weight.copy_(2.5 * rotation(4) @ one.weight)
    head = nn.Linear(5, 3).double()
    torch.testing.assert_close(stitch(one, head, anchors)(x), stitch(other, head, anchors)(x))
    rounded = head(RelativeProjection(bin_size=0.2)(one(x), one(anchors)))
    torch.testing.assert_close(stitch(one, head, anchors, bin_size=0.2)(x), rounded)
    plain = nn.Linear(6, 3).double()
    assert not torch.allclose(plain(one(x)), plain(other(x)), atol=0.1)


def test_stitched_anchors_follow_the_encoder_and_it_can_be_trained(pair):
    x, anchors = pair
    encoder, head = nn.Linear(6, 4).double(), nn.Linear(5, 2).double()
    net = stitch(encoder, head, anchors)
    assert not net.training
    net(x).sum().backward()
    assert encoder.weight.grad.abs().sum() > 0
    before = net(x)
    with torch.no_grad():
        encoder.weight.mul_(-1)
        encoder.bias.mul_(-1)
    torch.testing.assert_close(net(x), before)  # -E is a rotation of E, if anchors are not stale


@pytest.mark.parametrize("strategy", ["random", "farthest", "kmeans"])
def test_anchors_are_rows_none_twice_and_the_seed_s_own(strategy):
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    vectors[20:] = vectors[0]  # rows that repeat
    found = anchor_select(vectors, 30, strategy=strategy, seed=2)
    assert len(set(found.tolist())) == 30
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found, anchor_select(vectors, 30, strategy=strategy, seed=2))


def test_random_anchors_are_random_in_and_out_of_classes():
    for labels in (None, np.array([0] * 6 + [1] * 4)):
        found = [anchor_select(np.zeros((10, 1)), 4, labels=labels, seed=s) for s in range(300)]
        share = np.bincount(np.concatenate(found), minlength=10) / 300
        want = [0.4] * 10 if labels is None else [2 / 6] * 6 + [2 / 4] * 4
        np.testing.assert_allclose(share, want, atol=0.12)  # four deviations


def test_random_anchors_are_even_over_the_classes():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    found = anchor_select(np.zeros((84, 1)), 18, labels=labels, seed=1)
    assert np.bincount(labels[found]).tolist() == [7, 7, 4]
    assert len(anchor_select(np.zeros((84, 1)), 84, labels=labels)) == 84


@pytest.mark.parametrize("strategy", ["farthest", "kmeans"])
def test_each_of_four_directions_gets_its_anchor(strategy):
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(4), 15)
    vectors = np.eye(4)[groups] * rng.uniform(1, 9, (60, 1)) + rng.normal(size=(60, 4)) * 0.05
    for seed in range(3):
        found = anchor_select(vectors, 4, strategy=strategy, seed=seed)
        assert sorted(groups[found]) == [0, 1, 2, 3]


def test_farthest_points_by_loops():
    vectors = np.random.default_rng(5).normal(size=(12, 3))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first = int(np.random.default_rng(7).integers(12))
    chosen = [first]
    while len(chosen) < 5:
        rest = [i for i in range(12) if i not in chosen]
        chosen.append(min(rest, key=lambda i: max(unit[i] @ unit[j] for j in chosen)))
    found = anchor_select(vectors, 5, strategy="farthest", seed=7)
    assert found.tolist() == sorted(chosen)


def test_kmeans_by_loops():
    vectors = np.random.default_rng(8).normal(size=(60, 3)) + np.array([1.0, 0.0, 0.0])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for seed in range(3):
        means = unit[anchor_select(vectors, 7, strategy="farthest", seed=seed)]
        for _ in range(25):
            near = [min(range(7), key=lambda c, x=x: ((x - means[c]) ** 2).sum()) for x in unit]
            means = np.stack([unit[np.array(near) == c].mean(axis=0) for c in range(7)])
        want = {max(range(60), key=lambda i, m=m: unit[i] @ m) for m in means}
        assert len(want) == 7  # no row is nearest to two means here
        found = anchor_select(vectors, 7, strategy="kmeans", seed=seed)
        assert found.tolist() == sorted(want)


def test_refusals(pair):
    x, anchors = pair
    with pytest.raises(EtudeError, match=r"bin_size must be in 0\.\.2"):
        RelativeProjection(bin_size=-0.1)
    with pytest.raises(EtudeError, match=r"anchors must be \(A, 6\)"):
        RelativeProjection()(x, anchors[:, :5])
    with pytest.raises(EtudeError, match=r"anchors must be \(A, 6\)"):
        RelativeProjection()(x, anchors[:0])
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, D\)"):
        RelativeProjection()(x[0], anchors)
    with pytest.raises(EtudeError, match=r"n_anchors must be in 1\.\.4"):
        anchor_select(x.numpy(), 5)
    with pytest.raises(EtudeError, match="strategy must be one of random"):
        anchor_select(x.numpy(), 2, strategy="best")
    with pytest.raises(EtudeError, match=r"labels must be \(4,\)"):
        anchor_select(x.numpy(), 2, labels=np.zeros(3))
    with pytest.raises(EtudeError, match="anchors must be at least one sample"):
        stitch(nn.Identity(), nn.Identity(), anchors[:0])
