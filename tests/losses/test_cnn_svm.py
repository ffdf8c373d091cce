"""CNN-SVM against loops, scikit-learn's LinearSVC, and the released formula.

`test_released_loss` holds a number from AFAgarap/cnn-svm at 68e4e2b: the loss of
model/cnn_svm.py (its TensorFlow 1 does not run any more) in numpy float64 on the arrays that
numpy's RandomState(11) gives; it agrees to 1e-12. The released rule for the class is argmax of
the scores' signs; numpy's argmax, like TensorFlow's on a CPU, takes the lowest of equal entries.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.svm import LinearSVC

from etude.core import EtudeError
from etude.losses import CNNSVM, L2SVMLoss

RELEASED = 1.202817709223215


def made(weight, bias=None, penalty=1.0):
    """The loss with a given readout, (K, d)."""
    loss = L2SVMLoss(weight.shape[1], weight.shape[0], penalty=penalty).to(weight.dtype)
    with torch.no_grad():
        loss.readout.weight.copy_(weight)
        loss.readout.bias.copy_(torch.zeros(weight.shape[0]) if bias is None else bias)
    return loss


def batch(n=7, dim=4, n_classes=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    h, weight = (torch.randn(s, dim, generator=g, dtype=torch.float64) for s in (n, n_classes))
    bias = torch.randn(n_classes, generator=g, dtype=torch.float64)
    return h, torch.randint(n_classes, (n,), generator=g), weight, bias


@pytest.mark.parametrize("penalty", [1.0, 0.3])
def test_equals_the_equation_in_loops(penalty):
    h, target, weight, bias = batch()
    norm = sum(w**2 for row in weight.tolist() for w in row) / weight.numel()
    hinge = 0.0
    for row, k in zip(h.tolist(), target.tolist(), strict=True):
        for j, w in enumerate(weight.tolist()):
            score = sum(a * b for a, b in zip(row, w, strict=True)) + bias[j].item()
            hinge += max(0.0, 1 - (1 if j == k else -1) * score) ** 2
    expected = norm + penalty * hinge / (len(h) * len(weight))
    value = made(weight, bias, penalty)(h, target).item()
    assert value == pytest.approx(expected, rel=1e-12)


def test_released_loss():
    rng = np.random.RandomState(11)
    weight, bias = rng.normal(0, 0.1, (16, 5)), rng.normal(0, 0.1, 5)
    h, target = rng.normal(0, 2, (9, 16)), rng.randint(0, 5, 9)
    loss = made(torch.from_numpy(weight.T), torch.from_numpy(bias), penalty=0.7)
    value = loss(torch.from_numpy(h), torch.from_numpy(target).long())
    assert value.item() == pytest.approx(RELEASED, rel=1e-12)


def test_minimizer_is_scikit_learns_linear_svc():
    """(3) on frozen features without bias, C_svc = C d / (2 n)."""
    x, y = load_digits(return_X_y=True)
    x, y = x[:300:, 20:44] / 16, y[:300]
    penalty, (n, d) = 2.0, x.shape
    svc = LinearSVC(C=penalty * d / (2 * n), loss="squared_hinge", dual=False, tol=1e-10,
                    fit_intercept=False, max_iter=5000).fit(x, y)  # fmt: skip
    loss = made(torch.zeros(10, d, dtype=torch.float64), penalty=penalty)
    weight = loss.readout.weight
    optimizer = torch.optim.LBFGS([weight], max_iter=300, tolerance_grad=1e-10,
                                  tolerance_change=0.0, line_search_fn="strong_wolfe")  # fmt: skip
    h, target = torch.from_numpy(x), torch.from_numpy(y)

    def closure():
        optimizer.zero_grad()
        value = loss(h, target)
        value.backward()
        return value

    optimizer.step(closure)
    np.testing.assert_allclose(weight.detach().numpy(), svc.coef_, atol=1e-4)


def test_no_hinge_beyond_the_margin_and_a_continuous_slope_at_it():
    weight = torch.eye(3, dtype=torch.float64)
    h = torch.tensor([[1.0, -1.0, -2.0], [-1.0, -3.0, 1.5]], dtype=torch.float64)
    norm = torch.tensor(1 / 3, dtype=torch.float64)
    torch.testing.assert_close(made(weight)(h, torch.tensor([0, 2])), norm)
    for shift in (-1e-6, 1e-6):
        near = (h + torch.tensor([shift, 0, 0], dtype=torch.float64)).requires_grad_(True)
        made(weight)(near, torch.tensor([0, 2])).backward()
        assert near.grad.abs().max() < 1e-6
    inside = h.clone() - torch.tensor([0.5, 0, 0], dtype=torch.float64)
    inside.requires_grad_(True)
    made(weight)(inside, torch.tensor([0, 2])).backward()
    assert inside.grad[0, 0].item() == pytest.approx(-2 * 0.5 / 6)


def test_only_the_last_weight_is_penalized():
    h, target, weight, bias = batch()
    far = made(weight, bias, penalty=1e-12)
    far(h, target).backward()
    torch.testing.assert_close(far.readout.weight.grad, 2 * weight / weight.numel())
    assert far.readout.bias.grad.abs().max() < 1e-9


def test_gradcheck():
    h, target, weight, bias = batch()
    h.requires_grad_(True)
    loss = made(weight, bias)
    assert torch.autograd.gradcheck(lambda e: loss(e, target), (h,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_scores_stay_finite(dtype):
    h = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], dtype=dtype).requires_grad_(True)
    for target in ([0, 0], [1, 0]):  # class 2 is never seen
        loss = L2SVMLoss(2, 3).to(torch.promote_types(dtype, torch.float32))  # as in autocast
        value = loss(h, torch.tensor(target))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(loss.readout.weight.grad).all()
        assert torch.isfinite(h.grad).all()
    one = made(torch.ones(1, 2, dtype=torch.float64))
    assert one(torch.ones(1, 2, dtype=torch.float64), torch.tensor([0])).item() == 1.0


def small(**settings):
    g = torch.Generator().manual_seed(0)
    return CNNSVM(4, image_shape=(1, 10, 7), widths=(3, 5), hidden_dim=6, generator=g, **settings)


def test_the_network_has_the_papers_layers():
    full = CNNSVM(10)
    sizes = [tuple(p.shape) for p in full.parameters() if p.ndim > 1]
    assert sizes == [(32, 1, 5, 5), (64, 32, 5, 5), (1024, 7 * 7 * 64), (10, 1024)]
    assert all((p == 0.1).all() for p in full.parameters() if p.ndim == 1)
    for p in full.parameters():
        if p.ndim > 1:
            assert p.abs().max() <= 0.2
            assert 0.08 < p.std() < 0.1  # 0.088: the normal cut off at two deviations
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.5 for m in full.modules())


def test_the_network_trains_through_all_layers_and_predicts():
    network = small(dropout=0.0)
    x = torch.rand(8, 70, generator=torch.Generator().manual_seed(1))
    target = torch.arange(8) % 4
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(150):
        optimizer.zero_grad()
        network.loss(x, target).backward()
        assert step or all(p.grad.norm() > 0 for p in network.parameters())
        optimizer.step()
    assert (network.predict(x) == target).all()
    torch.testing.assert_close(network(x.reshape(8, 1, 10, 7)), network(x))


def test_the_released_rule_loses_by_ties():
    network = small()
    scores = [[0.2, 0.9, -1, -1], [-0.5, -2, -0.1, -3], [-1, 0, 0, -1], [-1, -1, -1, 5.0]]
    network.forward = lambda x: x
    table = torch.tensor(scores)
    assert network.predict(table).tolist() == [1, 2, 1, 3]
    released = network.predict(table, by_sign=True)
    assert released.tolist() == np.sign(table.numpy()).argmax(axis=1).tolist() == [0, 0, 1, 3]


def test_refusals():
    h, target, weight, _ = batch()
    with pytest.raises(EtudeError, match="penalty must be positive, got 0"):
        L2SVMLoss(4, 3, penalty=0.0)
    with pytest.raises(EtudeError, match="dim must be at least 1"):
        L2SVMLoss(0, 3)
    with pytest.raises(EtudeError, match="n_classes must be at least 1"):
        L2SVMLoss(4, 0)
    with pytest.raises(EtudeError, match=r"embeddings must be of shape \(B, 4\)"):
        made(weight)(h[:, :3], target)
    with pytest.raises(EtudeError, match="target must be"):
        made(weight)(h, target[:-1])
    with pytest.raises(EtudeError, match="dropout must be"):
        small(dropout=1.0)
    with pytest.raises(EtudeError, match="image_shape must be"):
        CNNSVM(3, image_shape=(1, 0, 4))
    with pytest.raises(EtudeError, match="widths must be"):
        CNNSVM(3, widths=(0, 4))
    with pytest.raises(EtudeError, match="hidden_dim must be"):
        CNNSVM(3, hidden_dim=0)
