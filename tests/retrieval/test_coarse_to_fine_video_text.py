"""UCoFiA's parts against slow loops, limits, and the released code.

Released code: Ziyang412/UCoFiA at commit 6098be2. Inputs by torch's CPU generator, seed 0, in
float64: randn(7, 5), three times it given to sinkhorn_knopp (eval_t2v/main_ucofia.py); then
randn(2, 3, 2, 4) as (texts, words, videos, patches) and four matrices I + 0.1 randn(k, k) of
k = 3, 4, 4, 3 for the lines of _loose_similarity that reduce the patch-word matrix
(train/modules/modeling_ucofia.py), at temperature 0.5 in place of 0.01. Ours were equal to 2e-15.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from etude.core import EtudeError
from etude.experiments.retrieval.coarse_to_fine_video_text import patch_videos
from etude.retrieval import InteractiveSimilarityAggregation as Aggregation
from etude.retrieval import UCoFiA, sinkhorn_normalize

ROWS = [-2.4361605834469398, -4.257236158284967, -4.995604335780791]
COLUMNS = [-0.22439350431785332, -3.397114657930532, -3.575097369234333, -2.899272546849384,
           -2.4715521091822983]  # fmt: skip
FINE = [[1.7077818054472276, 0.5786378802003842], [1.0095090373905642, 0.767774148295969]]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def model(**changes):
    facts = {"n_frames": 3, "n_patches": 5, "n_words": 4, "n_kept": 2, "n_samples": 20}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UCoFiA(8, **(facts | changes)).double().eval()


def inputs():
    return (
        normal(2, 8),
        normal(2, 4, 8, seed=1),
        normal(6, 3, 8, seed=2),
        normal(6, 3, 5, 8, seed=3),
    )


def test_same_as_the_released_code():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    rows, columns = sinkhorn_normalize(scores)
    np.testing.assert_allclose(F.log_softmax(rows, 0)[:3], ROWS, rtol=1e-12)
    np.testing.assert_allclose(F.log_softmax(columns, 0), COLUMNS, rtol=1e-12)
    pairs = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64).transpose(1, 2)
    parts = []
    for k in (3, 4, 4, 3):
        part = Aggregation(k, temperature=0.5).double()
        noise = torch.randn(k, k, generator=generator, dtype=torch.float64)
        part.mixing.data = torch.eye(k, dtype=torch.float64) + 0.1 * noise
        parts.append(part)
    by_patch = parts[2](parts[0](pairs.transpose(2, 3)))
    by_word = parts[3](parts[1](pairs))
    np.testing.assert_allclose(((by_patch + by_word) / 2).detach(), FINE, rtol=1e-12)


def test_aggregation_against_loops_with_padding():
    part = Aggregation(4, temperature=0.3).double()
    part.mixing.data = normal(4, 4, seed=5)
    scores, mask = normal(3, 4), torch.arange(4) < torch.tensor([[4], [3], [1]])
    found = part(scores, mask)
    for b, n in enumerate((4, 3, 1)):
        c = scores[b, :n].numpy()
        first = np.exp(c / 0.3) / np.exp(c / 0.3).sum()
        mixed = first @ part.mixing.detach().numpy()[:n, :n]
        weight = np.exp(mixed / 0.3) / np.exp(mixed / 0.3).sum()
        assert found[b].item() == pytest.approx(float(weight @ c))


def test_aggregation_is_maximum_when_cold_and_mean_when_hot():
    scores = normal(5, 12)
    top = scores.topk(2, dim=1).values
    assert (top[:, 0] - top[:, 1]).min() > 0.02
    cold, hot = Aggregation(12).double(), Aggregation(12, temperature=1e6).double()
    torch.testing.assert_close(cold(scores), scores.amax(1))
    torch.testing.assert_close(hot(scores), scores.mean(1), rtol=1e-5, atol=1e-5)


def test_gradients_of_the_aggregation():
    part = Aggregation(4, temperature=0.7).double()
    scores = normal(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(part, (scores,))
    part(scores).sum().backward()
    assert part.mixing.grad.abs().sum() > 0


def test_sinkhorn_balances_the_columns():
    scores = 4 * normal(90, 30)
    rows, columns = sinkhorn_normalize(scores)
    mass = (scores + rows[:, None] + columns).exp()
    torch.testing.assert_close(mass.sum(0), torch.ones(30, dtype=torch.float64))
    many = (scores + sum_outer(*sinkhorn_normalize(scores, n_rounds=300))).exp().sum(1)
    torch.testing.assert_close(many, torch.full((90,), 1 / 3, dtype=torch.float64))
    assert (mass.sum(1) - 1 / 3).abs().max() < 0.2


def sum_outer(rows, columns):
    return rows[:, None] + columns


def test_balanced_scores_are_left_and_a_constant_changes_nothing():
    level = torch.tensor([[1.0, 2, 3], [3, 1, 2], [2, 3, 1]])
    _, columns = sinkhorn_normalize(level)
    torch.testing.assert_close(columns, columns.mean().expand(3))
    scores = normal(6, 4)
    one, other = sinkhorn_normalize(scores)[1], sinkhorn_normalize(scores + 700)[1]
    torch.testing.assert_close(one - one[0], other - other[0])
    scores[:, 2] += 5  # a hub
    assert sinkhorn_normalize(scores)[1].argmin() == 2


@pytest.mark.parametrize("trained", [False, True])
def test_levels_against_loops(trained):
    net = model()
    sentences, words, frames, patches = inputs()
    torch.testing.assert_close(net.temporal(frames), frames)  # it starts as nothing
    if trained:
        for seed, weight in enumerate(net.parameters()):
            weight.data += 0.2 * normal(*weight.shape, seed=seed)
    (a, b_), (c, d) = net.maps[:2], net.maps[2:]
    moved = frames + net.temporal(frames + net.places)
    found = net.levels(sentences, words, frames, patches)

    def cosine(x, y, x_map=None, y_map=None):
        x, y = x / x.norm(), y / y.norm()
        mapped = x if x_map is None else x @ x_map
        return float((mapped @ (y if y_map is None else y @ y_map)).detach())

    for b in range(2):
        for n in range(6):
            video = sum(f / f.norm() for f in moved[n])
            whole = cosine(sentences[b], video, a, b_)
            assert found[0][b, n].item() == pytest.approx(100 * whole)
            each = torch.tensor([cosine(sentences[b], f) for f in frames[n]])
            middle = net.isa[0](each.double()).item()
            assert found[1][b, n].item() == pytest.approx(100 * middle)
            seen = []
            for f in range(3):
                seen.append(frames[n, f])
                beside = frames[n, f].expand(5, 8)
                score = net.selector(torch.cat([patches[n, f], beside], 1))[:, 0]
                seen += [patches[n, f, i] for i in sorted(score.topk(2).indices.tolist())]
            matrix = torch.tensor([[cosine(w, v, c, d) for v in seen] for w in words[b]]).double()
            fine = (net.isa[2](net.isa[1](matrix.T)) + net.isa[4](net.isa[3](matrix))) / 2
            assert found[2][b, n].item() == pytest.approx(100 * fine.item(), rel=1e-5)
    total = net(sentences, words, frames, patches)
    torch.testing.assert_close(total, sum(found) / 3)


def test_padding_has_no_say():
    net = model()
    sentences, words, frames, patches = inputs()
    w_mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    f_mask = torch.arange(3) < torch.tensor([3, 2, 1, 3, 2, 3])[:, None]
    masks = {"word_mask": w_mask, "frame_mask": f_mask}
    net.maps[2].data += 0.1 * normal(8, 8, seed=8)
    torch.nn.init.normal_(net.temporal.linear2.weight)
    before = net.levels(sentences, words, frames, patches, **masks)
    words[~w_mask], frames[~f_mask], patches[~f_mask] = 9.0, 9.0, 9.0
    for one, other in zip(
        before, net.levels(sentences, words, frames, patches, **masks), strict=True
    ):
        torch.testing.assert_close(one, other)
    free = net.levels(sentences, words, frames, patches)
    assert all((one - other).abs().max() > 0.01 for one, other in zip(before, free, strict=True))


def test_the_perturbed_choice_repeats_and_teaches_the_selector():
    sentences, words, frames, patches = inputs()
    runs = []
    for _ in range(2):
        net = model(generator=torch.Generator().manual_seed(3), n_samples=200, sigma=0.5).train()
        net(sentences, words, frames, patches).diagonal().sum().backward()
        runs.append(net.selector[0].weight.grad)
    torch.testing.assert_close(runs[0], runs[1])
    assert runs[0].abs().sum() > 0


def test_the_gradient_of_the_perturbed_choice_is_that_of_its_mean():
    from etude.retrieval.coarse_to_fine_video_text import _PerturbedTopK

    score = torch.tensor([0.3, 0.0, -0.4], dtype=torch.float64, requires_grad=True)
    noise = normal(400_000, 3)
    weight = torch.tensor([[1.0, 3.0, -2.0]], dtype=torch.float64)
    (_PerturbedTopK.apply(score, noise, 1, 0.5) * weight).sum().backward()
    numeric = []
    for i in range(3):
        step = 0.05 * torch.eye(3, dtype=torch.float64)[i]
        ends = [
            (_PerturbedTopK.apply(score.detach() + s * step, noise, 1, 0.5) * weight).sum()
            for s in (1, -1)
        ]
        numeric.append(float(ends[0] - ends[1]) / 0.1)
    np.testing.assert_allclose(score.grad, numeric, atol=0.03)


def test_generated_captions_are_nearest_to_their_own_videos_patches():
    _, words, frames, patches = patch_videos(np.random.default_rng(0), 40)
    assert frames.shape == (40, 4, 32)
    unit = F.normalize(patches.flatten(1, 2), dim=-1)
    best = torch.einsum("bsd,nvd->bnsv", words[:, 1:4], unit).amax(3).mean(2)
    assert (best.argmax(1) == torch.arange(40)).float().mean() > 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Aggregation(0), "n_tokens must be at least 1"),
        (lambda: Aggregation(3, temperature=0.0), "temperature must be positive"),
        (lambda: Aggregation(3)(torch.zeros(2, 4)), r"scores must be \(\.\.\., 3\)"),
        (lambda: Aggregation(2)(torch.zeros(1, 2), torch.zeros(1, 2).bool()), "true somewhere"),
        (lambda: sinkhorn_normalize(torch.zeros(3)), r"scores must be \(B, N\)"),
        (lambda: sinkhorn_normalize(torch.zeros(3, 3), n_rounds=0), "n_rounds must be at least 1"),
        (lambda: model(n_kept=6), r"n_kept must be in 1\.\.5"),
        (lambda: model(n_heads=3), "dim must be a multiple of 3 heads"),
        (lambda: model(sigma=0.0), "sigma must be positive"),
        (lambda: model()(*inputs()[:3], normal(6, 2, 5, 8)), "patches must be"),
        (lambda: model()(normal(2, 8), normal(2, 3, 8), *inputs()[2:]), "words must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
