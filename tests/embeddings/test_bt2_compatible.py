"""BT^2 against loops, its theorem (an isometry for any weights), and the released code.

Released code: YifeiZhou02/BT-2 at 8282360, `ResNet_ortho.forward` of models/resnet.py behind a
backbone that returns its input, and the sum of trainers/transfer_trainer.py with lambda 1, 10, 5.
Inputs, all from numpy default_rng(0), normal, float64, in this order: h (6, 9), W (4, 9), b (4),
V (3, 5), P and R the Q of QR of (5, 5) and (4, 4), old features (6, 4) and new ones (6, 5) with
rows normalized, T (3, 4); labels 0 1 2 2 1 0, m = 2, C = 2. The numbers are the first rows of
logits and embedding, the sums of R u[:4], f and z, and the loss. Ours were equal to 1e-15.
"""

import math

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.embeddings import BasisTransformationHead, bt2_loss, zero_pad_old

RELEASED_LOGITS = [0.7610647139753688, 1.102749988415241, 1.269113509895861]
RELEASED_Z = [
    -0.23025495633794915, 0.47342886974506887, -0.5165633645579449, 0.7287656573833665,
    -1.2831792009752747, 1.0453549688902808, -1.0888502167836198,
]  # fmt: skip
RELEASED_SUMS = [5.9484917948406295, 0.0620617046693257, 1.9877541124271203]
RELEASED_LOSS = 23.07503126744296
TARGET = torch.tensor([0, 1, 2, 2, 1, 0])


@pytest.fixture
def drawn():
    """The head with drawn weights, h, and the loss's other arguments."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return torch.tensor(rng.normal(size=shape))

    def turn(dim):
        return torch.tensor(np.linalg.qr(rng.normal(size=(dim, dim)))[0])

    h, w, b, v = normal(6, 9), normal(4, 9), normal(4), normal(3, 5)
    p, r = turn(5), turn(4)
    old, new, means = normal(6, 4), normal(6, 5), normal(3, 4)
    head = BasisTransformationHead(9, 3, old_dim=4, n_extra=2).double()
    with torch.no_grad():
        head.extra.weight.copy_(w)
        head.extra.bias.copy_(b)
        head.classifier.weight.copy_(v)
        head.turn_new.start.copy_(p)
        head.turn_old.start.copy_(r)
    return head, h, (old, new, means)


def moved(head, seed=0):
    """The head after weights of any kind, as an optimizer might leave them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(noise.to(weight.dtype))
        for turn in (head.turn_new, head.turn_old):  # drawn in float32: orthogonal to 1e-7 only
            turn.start.copy_(torch.linalg.qr(turn.start)[0])
    return head


def test_same_as_the_released_code(drawn):
    head, h, (old, new, means) = drawn
    parts = head.parts(h)
    np.testing.assert_allclose(parts.logits[0].detach(), RELEASED_LOGITS, rtol=1e-12)
    np.testing.assert_allclose(parts.full_embedding[0].detach(), RELEASED_Z, rtol=1e-12)
    sums = [parts.full_embedding[:, :4].sum(), parts.new_feat.sum(), parts.full_embedding.sum()]
    np.testing.assert_allclose([float(s.detach()) for s in sums], RELEASED_SUMS, rtol=1e-12)
    loss = bt2_loss(parts, TARGET, old, new, means)
    assert float(loss.detach()) == pytest.approx(RELEASED_LOSS, rel=1e-12)


def test_equations_by_loops(drawn):
    head, h, _ = drawn
    z = head(h).detach().numpy()
    w, b = head.extra.weight.detach().numpy(), head.extra.bias.detach().numpy()
    p, r = head.turn_new.start.numpy(), head.turn_old.start.numpy()
    for i, x in enumerate(h.numpy()):
        f = x[:5] / math.sqrt(sum(x[:5] ** 2))
        g = [sum(w[o, k] * max(x[k], 0) for k in range(9)) + b[o] for o in range(2)]
        e = np.array(g) / math.hypot(*g)
        u = np.concatenate([e, [sum(p[o, k] * 2 * f[k] for k in range(5)) for o in range(5)]])
        front = [sum(r[o, k] * u[k] for k in range(4)) for o in range(4)]
        np.testing.assert_allclose(z[i], [*front, *u[4:]], rtol=1e-12)


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_theorem_an_isometry_for_any_weights(seed, scale):
    head = moved(BasisTransformationHead(20, 3, old_dim=9, n_extra=4, scale=scale).double(), seed)
    h = torch.randn(7, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parts = head.parts(h)
    z, f = parts.full_embedding, parts.new_feat
    raw = head.extra(h.relu())[:, :4]
    e = raw / raw.norm(dim=1, keepdim=True)
    torch.testing.assert_close(z @ z.T, e @ e.T + scale**2 * f @ f.T, rtol=0, atol=1e-12)
    torch.testing.assert_close((z**2).sum(1), torch.full((7,), 1 + scale**2).double())


def test_rotations_stay_rotations_in_training(drawn):
    head, h, others = drawn
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    first = head(h).detach()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = bt2_loss(head.parts(h), TARGET, *others)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    assert head.turn_old.skew.abs().max() > 0.1
    for turn in (head.turn_new, head.turn_old):
        q = turn(torch.eye(len(turn.start), dtype=torch.float64))
        torch.testing.assert_close(q @ q.T, torch.eye(len(q)).double(), rtol=0, atol=1e-12)
    assert (head(h) - first).abs().max() > 0.1


def test_only_the_first_m_of_the_second_part_learn(drawn):
    head, h, others = drawn
    bt2_loss(head.parts(h), TARGET, *others).backward()
    assert (head.extra.weight.grad[2:] == 0).all()
    assert (head.extra.weight.grad[:2].abs().sum(1) > 0).all()


def test_gradients(drawn):
    head, h, others = drawn
    h = h[:3].requires_grad_()
    others = [others[0][:3], others[1][:3], others[2]]
    assert torch.autograd.gradcheck(
        lambda x, skew: bt2_loss(head.parts(x), TARGET[:3], *others) + 0 * skew.sum(),
        (h, head.turn_old.skew),
    )


def test_the_frozen_models_get_no_gradient(drawn):
    head, h, others = drawn
    others = [one.clone().requires_grad_() for one in others]
    bt2_loss(head.parts(h), TARGET, *others).backward()
    assert all(one.grad is None for one in others)


def test_loss_by_its_terms(drawn):
    head, h, (old, new, means) = drawn
    parts = head.parts(h)
    zero = {"new_weight": 0.0, "class_weight": 0.0, "old_weight": 0.0}
    own = bt2_loss(parts, TARGET, old, new, means, **zero)
    want = torch.nn.functional.cross_entropy(parts.logits, TARGET)
    assert float(own) == pytest.approx(float(want))
    for name, mine, theirs in (
        ("new_weight", parts.new_feat, new), ("old_weight", parts.compat, old),
    ):  # fmt: skip
        term = bt2_loss(parts, TARGET, old, new, means, **zero | {name: 1.0}) - own
        cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(mine, theirs, strict=True)]
        assert float(term) == pytest.approx(1 - np.mean(cosines), rel=1e-9)
    # features that are the frozen ones' own cost nothing, at any length
    same = parts._replace(new_feat=new, compat=old)
    left = bt2_loss(same, TARGET, 3 * old, 2 * new, means, **zero | {"old_weight": 1.0})
    assert float(left) == pytest.approx(float(own))


def test_padding_with_zeros_is_cutting_and_the_ranking_is_that_of_s(drawn):
    head, h, (old, _, _) = drawn
    parts = head.parts(h)
    z, padded = parts.full_embedding, zero_pad_old(old, 7)
    torch.testing.assert_close(z @ padded.T, z[:, :4] @ old.T)
    assert torch.equal((z @ padded.T).argsort(1), (parts.compat @ old.T).argsort(1))
    assert torch.equal(zero_pad_old(old, 4), old)


def test_the_generator_is_all_the_randomness():
    heads = [
        BasisTransformationHead(
            9, 3, old_dim=4, n_extra=2, generator=torch.Generator().manual_seed(s)
        )
        for s in (0, 0, 1)
    ]
    states = [head.state_dict() for head in heads]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["turn_old.start"], states[2]["turn_old.start"])


def test_first_rotations_are_drawn_from_reflections_too():
    # in one dimension there are just 1 and -1; QR as it comes gives always the same one
    heads = [
        BasisTransformationHead(
            2, 2, old_dim=1, n_extra=1, generator=torch.Generator().manual_seed(seed)
        )
        for seed in range(20)
    ]
    assert {head.turn_old.start.item() for head in heads} == {-1.0, 1.0}


def test_zeros_stay_finite():
    head = BasisTransformationHead(9, 3, old_dim=4, n_extra=2)
    h = torch.zeros(2, 9, requires_grad=True)
    head(h).sum().backward()
    assert torch.isfinite(h.grad).all()


def test_refusals(drawn):
    head, h, (old, new, means) = drawn
    with pytest.raises(EtudeError, match=r"old_dim must be in 1\.\.8"):
        BasisTransformationHead(9, 3, old_dim=9)
    with pytest.raises(EtudeError, match=r"n_extra must be in 1\.\.4"):
        BasisTransformationHead(9, 3, old_dim=4, n_extra=5)
    with pytest.raises(EtudeError, match=r"old_dim must be at most D_new \+ n_extra = 4"):
        BasisTransformationHead(9, 3, old_dim=6, n_extra=1)
    with pytest.raises(EtudeError, match="scale must be above 0"):
        BasisTransformationHead(9, 3, old_dim=4, n_extra=1, scale=0.0)
    with pytest.raises(EtudeError, match=r"embeddings must be \(B, 9\)"):
        head(h[:, :8])
    parts = head.parts(h)
    with pytest.raises(EtudeError, match=r"class_means must be \(3, 4\)"):
        bt2_loss(parts, TARGET, old, new, means[:2])
    with pytest.raises(EtudeError, match=r"old_features must be \(6, 4\)"):
        bt2_loss(parts, TARGET, new, new, means)
    with pytest.raises(EtudeError, match=r"target must be \(6,\)"):
        bt2_loss(parts, TARGET[:5], old, new, means)
    with pytest.raises(EtudeError, match="old_weight must be at least 0"):
        bt2_loss(parts, TARGET, old, new, means, old_weight=-1.0)
    with pytest.raises(EtudeError, match="dim must be at least 4"):
        zero_pad_old(old, 3)
