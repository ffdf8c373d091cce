"""The two parts against the released code and their known limits; the noise's moments.

Released code: Monoxide-Chen/uncertainty_retrieval at f1fd828, losses/uncertainty_loss.py:
BatchBasedAleatoricLoss with 10 epochs and gamma 1, at epochs 0 and 5. Inputs: torch generator of
seed 0, float64, (5, 6) normal: query, noised target, target, taken as they are. Ours were equal
to 1e-14. The release's augmenter draws in another order; its moments at the noised target taken
as a feature were those that the test below asserts.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from etude.core import EtudeError
from etude.retrieval import ComposedRetriever, MultiGrainedUncertaintyLoss, NormalAugmenter

RELEASED = {0: 1.1493451632809557, 5: 2.510507552548336}


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 6, generator=generator, dtype=torch.float64) for _ in "qft"]


def seeded(**knobs):
    return MultiGrainedUncertaintyLoss(generator=torch.Generator().manual_seed(3), **knobs)


@pytest.mark.parametrize("epoch", [0, 5])
def test_parts_same_as_the_released_code(given, epoch):
    q, noised, target = given
    loss, g = seeded(), np.exp(-epoch / 10)
    found = g * loss.uncertain(q, noised) + (1 - g) * loss.match(q, target)
    assert found.item() == pytest.approx(RELEASED[epoch], rel=1e-12)


def test_uncertain_against_a_slow_loop(given):
    q, noised, _ = given
    match = 0.0
    for i in range(5):
        parts = [float(torch.exp(q[i] @ f)) for f in noised]
        match -= np.log(parts[i] / sum(parts)) / 5
    entries = noised.flatten().numpy()
    u = np.sqrt(((entries - entries.mean()) ** 2).sum() / 29)
    found = seeded().uncertain(q, noised).item()
    assert found == pytest.approx((np.exp(-u) * match + u) / 2, rel=1e-12)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_the_whole_is_the_two_parts_at_length_scale(given, progress):
    q, _, target = given
    loss = seeded(gamma=2.0, scale=3.0)
    found = loss(q, target, progress=progress)
    q, f = 3 * normalize(q, dim=1), 3 * normalize(target, dim=1)
    again = NormalAugmenter(generator=torch.Generator().manual_seed(3))
    g = np.exp(-2.0 * progress)
    want = g * loss.uncertain(q, again(f)) + (1 - g) * loss.match(q, f)
    assert found.item() == pytest.approx(want.item(), rel=1e-12)


def test_limits_of_the_schedule(given):
    q, _, target = given
    plain = cross_entropy(16 * normalize(q, dim=1) @ normalize(target, dim=1).T, torch.arange(5))
    late = seeded(gamma=50.0)(q, target, progress=1.0)
    assert late.item() == pytest.approx(plain.item(), rel=1e-12)
    never = [seeded(gamma=0.0)(q, target, progress=p).item() for p in (0.0, 1.0)]
    assert never[0] == never[1] == seeded()(q, target).item()


def test_the_harder_the_match_the_more_fluctuation_is_preferred(given):
    q, noised, _ = given
    loss = seeded()
    found = []
    for match in (1.5, 4.0):
        loss.match = lambda q, f, match=match: torch.tensor(match)
        spread = torch.linspace(0.05, 3, 400, dtype=torch.float64)
        values = [loss.uncertain(q, r * noised / noised.std()).item() for r in spread]
        found.append(spread[int(np.argmin(values))].item())
    assert found == pytest.approx(np.log([1.5, 4.0]), abs=0.01)


def test_moments_of_the_noise(given):
    f = given[1]
    augment = NormalAugmenter(generator=torch.Generator().manual_seed(0))
    drawn = augment(f.repeat(20_000, 1)).reshape(20_000, 5, 6)
    mu, s = f.mean(dim=1, keepdim=True), f.std(dim=1, keepdim=True)
    at_rest = (f - mu) / (f.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    spread = s * (1 + at_rest**2).sqrt()
    torch.testing.assert_close(drawn.mean(dim=0), at_rest + mu, rtol=0, atol=0.08)
    torch.testing.assert_close(drawn.std(dim=0), spread, rtol=0.03, atol=0)
    flat = drawn - drawn.mean(dim=0)
    assert abs((flat[:, 0, 0] * flat[:, 0, 1]).mean().item()) < 0.05  # entries are independent


def test_a_wide_feature_keeps_its_mean_and_spreads_by_one_plus_twice_its_variance():
    generator = torch.Generator().manual_seed(0)
    f = 4 * normalize(torch.randn(3, 20_000, generator=generator, dtype=torch.float64), dim=1) + 0.3
    f = f * torch.tensor([[1.0], [10.0], [20.0]])
    found = NormalAugmenter(generator=generator)(f)
    s = f.std(dim=1)
    tolerance = 5 * (1 + 2 * s**2).sqrt().max().item() / 20_000**0.5
    torch.testing.assert_close(found.mean(dim=1), f.mean(dim=1), rtol=0, atol=tolerance)
    torch.testing.assert_close(found.std(dim=1), (1 + 2 * s**2).sqrt(), rtol=0.03, atol=0)


def test_noise_has_no_gradient(given):
    f = given[1].clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    found = NormalAugmenter(beta_scale=1.0, alpha_scale=0.0, generator=generator)(f)
    assert torch.autograd.grad(found.sum(), f)[0].abs().sum() == 0


def test_gradients_of_the_parts(given):
    q, noised, target = (part.requires_grad_() for part in given)
    loss = seeded()
    assert torch.autograd.gradcheck(loss.uncertain, (q, noised))
    # without noise, whose own scale follows the input but not its gradient
    quiet = MultiGrainedUncertaintyLoss(beta_scale=0.0, alpha_scale=0.0)
    assert torch.autograd.gradcheck(lambda a, b: quiet(a, b, progress=0.5), (q, target))


def test_composition_at_rest_and_under_a_style():
    compose = ComposedRetriever(4, text_dim=3).double()
    image, text = torch.randn(2, 4).double(), torch.randn(2, 3).double()
    for layer in (compose.style, compose.gate):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(compose.gate.bias, -1e9)  # nothing of the image's statistics
    with torch.no_grad():
        compose.style.bias.copy_(torch.tensor([2.0] * 4 + [5.0] * 4))
    found = compose(image, text)
    torch.testing.assert_close(found.mean(dim=1), torch.full((2,), 5.0).double())
    spread = found.std(dim=1, correction=0)
    torch.testing.assert_close(spread, torch.full((2,), 2.0).double(), rtol=1e-3, atol=0)
    torch.nn.init.constant_(compose.gate.bias, 1e9)  # all of them, and no style
    torch.nn.init.zeros_(compose.style.bias)
    torch.testing.assert_close(compose(image, text), image, rtol=1e-3, atol=1e-3)


def test_the_statistics_that_are_kept_carry_no_gradient():
    compose = ComposedRetriever(4, text_dim=3).double()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    text = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    # of what is not detached only the normalized image is left, and it has no mean
    gate, style = torch.sigmoid(compose.gate(text)), compose.style(text)
    scale = gate[:, :4] * image.detach().std(dim=1, keepdim=True, correction=0) + style[:, :4]
    rest = torch.nn.functional.layer_norm(image, (4,))
    want = torch.autograd.grad((scale.detach() * rest).square().sum(), image)[0]
    shift = (gate[:, 4:] * image.mean(dim=1, keepdim=True) + style[:, 4:]).detach()
    found = torch.autograd.grad((compose(image, text) - shift).square().sum(), image)[0]
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiGrainedUncertaintyLoss(gamma=-1.0), "gamma must be at least 0"),
        (lambda: MultiGrainedUncertaintyLoss(scale=0.0), "scale must be positive"),
        (lambda: NormalAugmenter(alpha_scale=-1.0), "alpha_scale must be"),
        (lambda: NormalAugmenter()(torch.ones(3)), "features must be"),
        (lambda: ComposedRetriever(1), "dim must be at least 2"),
        (lambda: seeded()(torch.ones(2, 3), torch.ones(3, 3)), "positive must be"),
        (lambda: seeded()(torch.ones(2, 3), torch.ones(2, 3), progress=2.0), "progress must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
