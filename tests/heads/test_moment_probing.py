"""Moment probing: cross-moments by loops, what the head reduces to, and the authors' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from etude.core import EtudeError, check_names
from etude.heads.moment_probing import PSRP, MomentProbe, MultiHeadCrossCovariance


def tokens_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(center: str = "scalar", **sizes: int) -> MultiHeadCrossCovariance:
    torch.manual_seed(0)
    maps = MultiHeadCrossCovariance(center=center, **sizes).double()
    nn.init.normal_(maps.norm.weight, 1.0, 0.3)
    nn.init.normal_(maps.norm.bias, 0.0, 0.3)
    return maps


def moments_by_loops(maps: MultiHeadCrossCovariance, tokens: np.ndarray) -> np.ndarray:
    """(2) and (3) for one sample (T, dim)."""
    weight, bias = (p.detach().numpy() for p in maps.projection.parameters())
    gain, shift = (p.detach().numpy() for p in maps.norm.parameters())
    h, n, w = maps.n_heads, len(tokens), len(gain)
    X = np.zeros((h, n, w))
    for t in range(n):
        projected = weight @ tokens[t] + bias
        for i in range(h):
            part = projected[i * w : (i + 1) * w]
            X[i, t] = (part - part.mean()) / math.sqrt(part.var() + 1e-5) * gain + shift
    for i in range(h):
        if maps.center == "scalar":
            X[i] -= X[i].mean()
        if maps.center == "channel":
            X[i] -= X[i].mean(axis=0)
    C = np.zeros((h - 1, w, w))
    for i in range(h - 1):
        for a in range(w):
            for b in range(w):
                C[i, a, b] = sum(X[i, t, a] * X[i + 1, t, b] for t in range(n)) / n
        for b in range(w):
            C[i, :, b] /= math.sqrt(sum(C[i, a, b] ** 2 for a in range(w)))
    return C


@pytest.mark.parametrize("center", ["scalar", "channel", "none"])
def test_moments_by_loops(center: str) -> None:
    maps = built(center, dim=5, hidden_dim=28, n_heads=4)
    tokens = tokens_of(1, 2, 6, 5)
    found = maps.moments(tokens)
    assert found.shape == (2, 3, 7, 7)
    for sample in range(2):
        expected = moments_by_loops(maps, tokens[sample].numpy())
        np.testing.assert_allclose(found[sample].detach(), expected, atol=1e-12)


def test_features_are_two_convolutions_with_a_gelu_between() -> None:
    maps = built(dim=5, hidden_dim=36, n_heads=3)
    tokens = tokens_of(2, 2, 4, 5)
    image = maps.moments(tokens)
    first, second = (p for p in maps.shrink.parameters())
    assert first.shape == second.shape == (2, 2, 3, 3)
    step = F.gelu(F.conv2d(image, first, stride=2))
    expected = F.conv2d(step, second, stride=2).reshape(2, -1)
    torch.testing.assert_close(maps(tokens), expected)


@pytest.mark.parametrize(
    ("hidden_dim", "n_heads", "out_dim"), [(512, 4, 2883), (128, 4, 147), (28, 4, 3), (18, 2, 1)]
)
def test_width_is_computed_from_both_knobs(hidden_dim: int, n_heads: int, out_dim: int) -> None:
    maps = MultiHeadCrossCovariance(4, hidden_dim=hidden_dim, n_heads=n_heads)
    assert maps.out_dim == out_dim
    assert maps(torch.randn(2, 3, 4)).shape == (2, out_dim)


def test_order_of_tokens_does_not_matter_and_columns_have_unit_length() -> None:
    probe = MomentProbe(5, 3, hidden_dim=32).double()
    tokens = tokens_of(3, 2, 9, 5)
    torch.testing.assert_close(probe(tokens), probe(tokens[:, torch.randperm(9)]))
    moments = probe.second.moments(tokens)
    torch.testing.assert_close(moments.norm(dim=2), torch.ones_like(moments[:, :, 0]))
    assert not torch.allclose(moments.norm(dim=3), torch.ones_like(moments[:, :, 0]))


def test_scalar_centering_is_nothing_after_a_new_layer_norm_but_channel_centering_is_not() -> None:
    tokens, found = tokens_of(4, 2, 9, 5), {}
    for center in ("scalar", "channel", "none"):
        torch.manual_seed(1)
        maps = MultiHeadCrossCovariance(5, hidden_dim=32, center=center).double()
        found[center] = maps(tokens)
    torch.testing.assert_close(found["scalar"], found["none"])
    assert not torch.allclose(found["channel"], found["none"])


def test_without_second_moments_it_is_half_a_linear_probe() -> None:
    probe = MomentProbe(5, 3, hidden_dim=32, class_token=True).double()
    nn.init.zeros_(probe.W2.weight)
    nn.init.zeros_(probe.W2.bias)
    tokens = tokens_of(5, 2, 9, 5)
    torch.testing.assert_close(probe(tokens), probe.W1(tokens[:, 0]) / 2)
    pooled = MomentProbe(5, 3, hidden_dim=32).double()
    nn.init.zeros_(pooled.W2.weight)
    nn.init.zeros_(pooled.W2.bias)
    mean = tokens.mean(dim=1)
    g = (mean - mean.mean(1, keepdim=True)) / (
        mean.var(1, correction=0, keepdim=True) + 1e-6
    ).sqrt()
    torch.testing.assert_close(pooled(tokens), pooled.W1(g) / 2)


def test_class_token_has_no_part_in_the_moments() -> None:
    probe = MomentProbe(5, 3, hidden_dim=32, class_token=True).double()
    tokens = tokens_of(6, 2, 9, 5)
    moved = tokens.clone()
    moved[:, 0] += 3.0
    difference = probe(moved) - probe(tokens)
    torch.testing.assert_close(difference, (probe.W1(moved[:, 0]) - probe.W1(tokens[:, 0])) / 2)


def fill(parameters: list[Tensor]) -> None:
    """Weights that any program can make: 0.3 sin((0.7 + 0.1 i) n + i), n-th entry of the i-th."""
    for i, parameter in enumerate(parameters):
        n = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = (0.3 * torch.sin(n * (0.7 + 0.1 * i) + i)).reshape(parameter.shape)


RELEASED = {
    True: [
        [0.02500286385, 0.5042922921, 0.07833194855],
        [-0.2205837854, -0.0002316438016, 0.2700884682],
    ],
    False: [[0.622310119, -0.491482285, -0.603649681], [0.591099676, 0.385803388, -0.479824098]],
}


@pytest.mark.parametrize("class_token", [True, False])
def test_release(class_token: bool) -> None:
    """Moment_Probing_ViT and _CNN (0ddc040, models/representation/MP.py), hidden 512, 4 heads.

    Weights by `fill` in the order projection, norm, convolutions, first, second classifier;
    tokens cos(1.3 n). float64; both agree with ours within 2e-16. Head i of the CNN variant has
    the channels i, i + 4, ...: our projection is permuted accordingly.
    """
    probe = MomentProbe(6, 3, hidden_dim=512, class_token=class_token).double()
    second = probe.second
    layers = (second.projection, second.norm, second.shrink, probe.W1, probe.W2)
    fill([parameter for layer in layers for parameter in layer.parameters()])
    tokens = torch.cos(torch.arange(60, dtype=torch.float64) * 1.3).reshape(2, 5, 6)
    if not class_token:
        interleaved = torch.arange(512).reshape(128, 4).T.reshape(-1)
        for parameter in second.projection.parameters():
            parameter.data = parameter.data[interleaved]
        tokens = tokens[:, 1:]
    released = torch.tensor(RELEASED[class_token], dtype=torch.float64)
    torch.testing.assert_close(probe(tokens), released, atol=2e-9, rtol=0)


def test_recalibration_by_hand_and_its_start() -> None:
    """Release: models/representation/PSRP.py and the Block around it; equal bit for bit."""
    module = PSRP(6).double()
    x = torch.cos(torch.arange(60, dtype=torch.float64) * 1.3).reshape(2, 5, 6)
    assert torch.equal(module(x, torch.tanh), x + torch.tanh(x))
    fill([module.D.weight, module.U1.weight, module.U2.weight])
    released = [1.779519604, 0.461818397, -1.534530191, -1.266866991, 0.863125573, 1.661765457]
    torch.testing.assert_close(
        module(x, torch.tanh)[0, 0], torch.tensor(released, dtype=torch.float64), atol=2e-9, rtol=0
    )
    assert sum(p.numel() for p in module.parameters()) == 3 * 16 * 6
    nn.init.zeros_(module.U1.weight)
    nn.init.zeros_(module.U2.weight)
    loss = module(x, torch.tanh).square().sum()
    loss.backward()
    assert module.U1.weight.grad.abs().max() > 0  # a zero start is not a dead one


def test_gradients() -> None:
    torch.manual_seed(2)
    probe = MomentProbe(4, 3, hidden_dim=14, n_heads=2).double()
    tokens = tokens_of(7, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(probe, (tokens,), atol=1e-6)
    module = PSRP(4, hidden_dim=3).double()
    fill([module.D.weight, module.U1.weight, module.U2.weight])
    assert torch.autograd.gradcheck(lambda x: module(x, torch.tanh), (tokens,))


def test_limits() -> None:
    probe = MomentProbe(4, 1, hidden_dim=32)
    assert probe(torch.randn(3, 1, 4)).shape == (3, 1)
    for scale in (0.0, 1e-20, 1e6):
        tokens = (scale * torch.randn(3, 5, 4)).requires_grad_()
        probe(tokens).sum().backward()
        assert torch.isfinite(tokens.grad).all()


def test_it_learns_textures_that_share_their_mean_and_variances() -> None:
    """Two classes, tokens of unit variance whose features correlate at +0.8 or -0.8."""
    generator = torch.Generator().manual_seed(8)
    target = torch.arange(400) % 2
    tokens = torch.randn(400, 20, 2, generator=generator)
    sign = 2.0 * target[:, None] - 1
    tokens[:, :, 1] = 0.8 * sign * tokens[:, :, 0] + 0.6 * tokens[:, :, 1]
    torch.manual_seed(3)
    probe = MomentProbe(2, 2, hidden_dim=32)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(probe(tokens[:200]), target[:200]).backward()
        optimizer.step()
    right = (probe(tokens[200:]).argmax(dim=1) == target[200:]).float().mean()
    first = (probe.W1(probe.first(tokens[200:].mean(1))).argmax(1) == target[200:]).float().mean()
    assert right > 0.9
    assert first < 0.65


def test_default_sizes_are_small() -> None:
    """Operations of a step of the probe task, 64 samples of 49 tokens: 843 steps are a minute."""
    probe, tokens = MomentProbe(36, 10), torch.randn(64, 49, 36)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(probe(tokens), torch.arange(64) % 10).backward()
    assert 1e7 < counter.get_total_flops() < 3e8
    assert sum(p.numel() for p in probe.parameters()) < 10_000


def test_refusals() -> None:
    with pytest.raises(EtudeError, match="hidden_dim must be at least 28 for 4 heads"):
        MomentProbe(4, 3, hidden_dim=24)
    with pytest.raises(EtudeError, match="hidden_dim must be a multiple of 4"):
        MomentProbe(4, 3, hidden_dim=30)
    with pytest.raises(EtudeError, match="n_heads must be at least 2"):
        MomentProbe(4, 3, n_heads=1)
    with pytest.raises(EtudeError, match="center must be one of scalar, channel, none"):
        MomentProbe(4, 3, center="mean")
    with pytest.raises(EtudeError, match=r"tokens must be \(B, T, 4\)"):
        MomentProbe(4, 3)(torch.zeros(2, 5, 6))
    with pytest.raises(EtudeError, match="tokens must be at least 2 a sample"):
        MomentProbe(4, 3, class_token=True)(torch.zeros(2, 1, 4))
    for method in (MomentProbe, MomentProbe.forward, PSRP, PSRP.forward):
        check_names(method)
