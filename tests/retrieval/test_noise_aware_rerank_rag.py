"""RagVL's reranker, filter and weighted loss against loops in float64, limits and the release.

Released code: IDEA-FinAI/RagVL at d31de67. Its add_diffusion_noise (vcd_utils) of [1, -2, 3] at
step 500 after torch.manual_seed(0) gave NOISED, ours is equal to 1e-6. Its loss (cd_forward of
llava_llama.py) was run with the label's column where it reads the first: default_rng(0), logits
and noised logits each 3 * normal(size=(5, 4)), labels [0, 2, 1, 3, 2]; it adds 1e-6 to the sum of
weights, ours is equal to 2e-7.
"""

import numpy as np
import pytest
import torch

from etude.core import EtudeError
from etude.retrieval import (
    RerankHead,
    ToyMultimodalRAG,
    adaptive_filter,
    adaptive_threshold,
    diffusion_noise,
    noise_injected_loss,
)

NOISED = [1.6414892673492432, -1.874267339706421, 1.4883828163146973]
RELEASED = 2.088491951895361


def draws(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def head(dim=5, n_tokens=3):
    torch.manual_seed(0)
    return RerankHead(dim, n_tokens=n_tokens, hidden_dim=7).double()


def test_the_score_is_a_softmax_over_yes_and_no():
    net, tokens = head(), draws(6, 3, 5)
    logits = net(tokens).detach()
    want = logits[:, 0].exp() / logits.exp().sum(dim=1)
    torch.testing.assert_close(net.score(tokens).detach(), want)
    right = torch.tensor([True, False, True, True, False, False])
    loss = -torch.where(right, want, 1 - want).log().mean()
    torch.testing.assert_close(net.loss(tokens, right).detach(), loss)


def test_the_reranker_multiplies_question_and_image():
    net = head()
    question, image, strange, caption = draws(4, 5)
    only = torch.zeros_like(net.hidden.weight)
    only[:, 4 * 7 : 5 * 7] = 1.0  # the product of question and image alone is read
    net.hidden.weight.data = only
    here = net(torch.stack([question, caption, image])[None])
    assert not torch.allclose(here, net(torch.stack([question, caption, strange])[None]))
    assert not torch.allclose(here, net(torch.stack([strange, caption, image])[None]))
    torch.testing.assert_close(here, net(torch.stack([question, strange, image])[None]))


def test_gradients_of_the_head():
    tokens = draws(3, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(head(), (tokens,))


def slow_loss(logits, noised, target, mask, low, high):
    total = weights = 0.0
    for b in range(len(target)):
        words = [t for t in range(target.shape[1]) if mask[b][t]]
        gain = {t: float(logits[b, t, target[b, t]] - noised[b, t, target[b, t]]) for t in words}
        for t in words:
            near = [min(max(gain[u], low), high) for u in words if abs(u - t) <= 1]
            weight = sum(near) / len(near)
            probs = torch.softmax(logits[b, t], dim=0)
            total += weight * -float(probs[target[b, t]].log())
            weights += weight
    return total / weights


def test_the_loss_is_that_of_loops():
    logits, noised = 3 * draws(4, 6, 5), 3 * draws(4, 6, 5, seed=1)
    target = torch.from_numpy(np.random.default_rng(2).integers(0, 5, (4, 6)))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, 3:] = mask[1, :2] = mask[2, 2] = False
    for low, high in ((1.0, 5.0), (0.5, 2.0)):
        ours = noise_injected_loss(logits, noised, target, mask, lowest=low, highest=high)
        assert float(ours) == pytest.approx(slow_loss(logits, noised, target, mask, low, high))


def test_same_as_the_release_with_the_label_s_column():
    rng = np.random.default_rng(0)
    logits, noised = (torch.from_numpy(3 * rng.normal(size=(1, 5, 4))) for _ in range(2))
    ours = noise_injected_loss(logits, noised, torch.tensor([[0, 2, 1, 3, 2]]))
    assert float(ours) == pytest.approx(RELEASED, rel=1e-6)


def test_without_noise_it_is_the_mean_cross_entropy_of_the_answers():
    logits = draws(3, 4, 6)
    target, mask = torch.arange(12).reshape(3, 4) % 6, torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    loss = torch.nn.functional.cross_entropy(logits[mask], target[mask])
    torch.testing.assert_close(noise_injected_loss(logits, logits, target, mask), loss)
    changed = torch.where(mask[..., None], logits, logits + 7)  # what is no answer is not read
    torch.testing.assert_close(noise_injected_loss(changed, logits, target, mask), loss)


def test_the_weights_are_bounded_and_carry_no_gradient():
    logits, noised = draws(1, 3, 4).requires_grad_(), draws(1, 3, 4, seed=1).requires_grad_()
    target = torch.tensor([[0, 1, 2]])
    noise_injected_loss(logits, noised, target).backward()
    assert noised.grad is None
    # with gains far beyond the upper bound all weigh the same, 5
    far = noise_injected_loss(logits, logits.detach() - 1e3, target)
    plain = torch.nn.functional.cross_entropy(logits[0], target[0])
    torch.testing.assert_close(far, plain)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (far, plain)]
    torch.testing.assert_close(*grads)


def test_diffusion_noise_is_the_released_one():
    generator = torch.Generator().manual_seed(0)
    ours = diffusion_noise(torch.tensor([1.0, -2.0, 3.0]), generator=generator)
    np.testing.assert_allclose(ours.numpy(), NOISED, atol=2e-6)
    x = draws(4000)
    torch.testing.assert_close(diffusion_noise(x, step=0), x, atol=0.05, rtol=0)
    assert float(diffusion_noise(x, step=999).std()) == pytest.approx(1, abs=0.05)


def test_the_filter_keeps_the_best_that_reach_the_threshold():
    scores = np.array([[0.2, 0.9, 0.6, 0.7], [0.1, 0.3, 0.2, 0.5]])
    want = [[False, True, False, True], [False, False, False, True]]
    assert adaptive_filter(scores, n_kept=2, threshold=0.5).tolist() == want
    assert adaptive_filter(scores, n_kept=4, threshold=0.0).all()
    counts = [adaptive_filter(scores, n_kept=3, threshold=t).sum() for t in np.linspace(0, 1, 21)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6


def test_the_threshold_is_where_the_densities_cross():
    rng = np.random.default_rng(0)
    right, wrong = 0.7 + 0.05 * rng.normal(size=400), 0.3 + 0.05 * rng.normal(size=100)
    both = np.concatenate([right, wrong]).clip(0, 1)
    found = adaptive_threshold(both, np.arange(500) < 400)
    # both spread alike, so they cross half-way, whatever their numbers
    assert found == pytest.approx(0.5, abs=0.03)
    assert adaptive_threshold(np.array([0.0, 1.0]), np.array([False, True])) == 0.5
    # a few right ones far below the wrong ones' mean do not move it there
    low = np.concatenate([np.full(20, 0.02), both])
    assert adaptive_threshold(low, np.arange(520) < 420) == pytest.approx(found, abs=0.01)
    # worse scores for the right ones: nothing can be gained
    assert adaptive_threshold(both, np.arange(500) >= 400) == 0.0


def bank():
    rng = np.random.default_rng(3)
    return rng.normal(size=(4, 3)), rng.normal(size=(9, 3)), draws(4, 5), draws(9, 2, 5, seed=4)


def test_a_perfect_reranker_keeps_only_true_images():
    queries, vectors, questions, items = bank()
    true = np.array([0, 3, 5, 8])

    def perfect(tokens):
        wanted = items[true].repeat_interleave(9, dim=0)
        return (tokens[:, 1:] == wanted).all(dim=2).all(dim=1).double()

    rag = ToyMultimodalRAG(perfect, n_retrieved=9, threshold=0.5)
    found = rag.select(queries, vectors, questions, items)
    assert found.ids[:, 0].tolist() == true.tolist()
    assert found.kept.sum(axis=1).tolist() == [1, 1, 1, 1]
    assert (found.ids[found.kept] == true).all()


def test_all_kept_and_no_threshold_only_reorders():
    queries, vectors, questions, items = bank()
    plain = ToyMultimodalRAG(None, n_retrieved=5, n_kept=5).select(
        queries, vectors, questions, items
    )
    order = np.argsort(-(queries @ vectors.T), axis=1)[:, :5]
    np.testing.assert_array_equal(plain.ids, order)
    net = head()
    found = ToyMultimodalRAG(net.score, n_retrieved=5, n_kept=5).select(
        queries, vectors, questions, items
    )
    assert found.kept.all()
    np.testing.assert_array_equal(np.sort(found.ids, axis=1), np.sort(order, axis=1))
    assert (np.diff(found.scores, axis=1) <= 0).all()
    for n in range(4):
        one = torch.cat([questions[n : n + 1, None], items[found.ids[n, :1]]], dim=1)
        assert float(net.score(one).detach()) == pytest.approx(found.scores[n, 0])
    two = ToyMultimodalRAG(net.score, n_retrieved=5, n_kept=2).select(
        queries, vectors, questions, items
    )
    assert two.kept.tolist() == [[True, True, False, False, False]] * 4


def test_equal_images_are_retrieved_by_id():
    vectors = np.tile([[1.0], [2.0]], (60, 1))
    found = ToyMultimodalRAG(None).retrieve(np.ones((1, 1)), vectors)
    assert found.tolist() == [list(range(1, 41, 2))]


def test_refusals():
    with pytest.raises(EtudeError, match="hidden_dim must be at least 1"):
        RerankHead(4, hidden_dim=0)
    with pytest.raises(EtudeError, match=r"tokens must be \(B, 3, D\)"):
        head()(draws(2, 4, 5))
    with pytest.raises(EtudeError, match="scores must be"):
        adaptive_filter(np.array([[np.nan]]))
    with pytest.raises(EtudeError, match="n_kept must be at least 1"):
        adaptive_filter(np.ones((1, 2)), n_kept=0)
    with pytest.raises(EtudeError, match="positives must be of both kinds"):
        adaptive_threshold(np.array([0.1, 0.2]), np.array([True, True]))
    with pytest.raises(EtudeError, match=r"scores must be \(N,\) in \[0, 1\]"):
        adaptive_threshold(np.array([0.1, 1.2]), np.array([True, False]))
    with pytest.raises(EtudeError, match=r"step must be in 0\.\.999"):
        diffusion_noise(draws(2), step=1000)
    logits, target = draws(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(EtudeError, match="mask must be true at least once"):
        noise_injected_loss(logits, logits, target, torch.zeros(1, 2, dtype=torch.bool))
    with pytest.raises(EtudeError, match="lowest, highest must be rising"):
        noise_injected_loss(logits, logits, target, lowest=2.0, highest=1.0)
    with pytest.raises(EtudeError, match=r"n_kept must be in 1\.\.3"):
        ToyMultimodalRAG(None, n_retrieved=3, n_kept=4)
    queries, vectors, questions, items = bank()
    with pytest.raises(EtudeError, match="items must be 9 rows"):
        ToyMultimodalRAG(None).select(queries, vectors, questions, items[:3])
