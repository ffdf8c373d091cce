"""Upcycled encoders against their base, a block in plain loops, the losses against the release.

Official losses: models/losses.py at 2a67569, run on a = randn(6, 4) and b = a + randn(6, 4) of
``numpy.random.default_rng(0)`` in float64: the figures in ``OFFICIAL``, reproduced to 1e-12.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.embeddings import EnforcedMoEEncoder, cocitation_pairs, mnr_loss

OFFICIAL = {
    ("mnr", False): 1.5042680986935295,
    ("mnr", True): 1.4785545863358154,
    ("plus", False): 1.0318012680900959,
    ("plus", True): 1.4675030001598977,
}
IDS = torch.randint(0, 30, (6, 5), generator=torch.Generator().manual_seed(3))
DOMAINS = torch.tensor([0, 1, 2, 0, 1, 2])


def encoder(**changes):
    arguments = {"n_words": 30, "depth": 2, "n_heads": 2, "most_tokens": 7} | changes
    return EnforcedMoEEncoder(8, generator=torch.Generator().manual_seed(0), **arguments)


def shaken(model):
    """Every number moved, so that nothing is equal by its start."""
    generator = torch.Generator().manual_seed(9)
    for p in model.parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=generator)
    return model


def pairs():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((6, 4))
    return torch.from_numpy(a), torch.from_numpy(a + rng.standard_normal((6, 4)))


def test_the_forward_pass_is_the_equations_in_loops():
    model = shaken(encoder(n_domains=3)).double()
    got = model(IDS, DOMAINS).detach()
    for row, (ids, m) in enumerate(zip(IDS, DOMAINS.tolist(), strict=True)):
        h = torch.stack([model.domain_tokens[m], *(model.words[i] for i in ids)])
        h = h + model.positions[:6]
        for block in model.blocks:
            x = block.norms[0](h)
            q, k, v = (block.qkv(x)[:, 8 * j : 8 * j + 8] for j in range(3))
            heads = []
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                weight = (q[:, part] @ k[:, part].T / 2).softmax(dim=1)
                heads.append(weight @ v[:, part])
            h = h + block.out(torch.cat(heads, dim=1))
            x = block.norms[1](h)
            first, _, second = block.experts[m]
            h = h + second(F.gelu(first(x)))
        mean = model.norm(h).mean(dim=0)
        norm, one, _, two = model.pool
        torch.testing.assert_close(got[row], two(torch.tanh(one(norm(mean)))).detach())


def test_upcycling_changes_no_output_whatever_the_domain():
    base = shaken(encoder())
    want = base(IDS)
    for blocks in (None, (1,), ()):
        grown = base.upcycle(3, blocks)
        for m in range(3):
            torch.testing.assert_close(grown(IDS, torch.full((6,), m)), want)
        assert [len(b.experts) for b in grown.blocks] == {None: [3, 3], (1,): [1, 3], (): [1, 1]}[
            blocks
        ]
    grown.words.data += 1  # a copy, not the same tensors
    grown = base.upcycle(3)
    for p in grown.blocks.parameters():
        p.data += 1
    grown.domain_tokens.data += 1
    torch.testing.assert_close(base(IDS), want)


def test_upcycled_copies_are_trained_apart_and_keep_the_precision():
    grown = shaken(encoder()).double().upcycle(2)
    assert grown(IDS).dtype == torch.float64
    first, second = grown.blocks[0].experts
    before = second[0].weight.detach().clone()
    first[0].weight.data += 1
    assert torch.equal(second[0].weight, before)


def test_a_domains_batch_moves_its_own_expert_and_token_and_what_is_shared():
    model = shaken(encoder(n_domains=3))
    model(IDS, torch.ones(6, dtype=torch.int64)).square().sum().backward()
    assert [bool(g.any()) for g in model.domain_tokens.grad] == [False, True, False]
    for block in model.blocks:
        for m, expert in enumerate(block.experts):
            grads = [p.grad for p in expert.parameters()]
            assert all(g is None for g in grads) if m != 1 else all(g.any() for g in grads)
        assert block.qkv.weight.grad.any()
    assert model.words.grad.any()


def test_a_mixed_batch_is_its_sentences_one_by_one():
    model = shaken(encoder(n_domains=3)).double()
    whole = model(IDS, DOMAINS)
    single = torch.cat([model(IDS[i : i + 1], DOMAINS[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(whole, single)
    assert not torch.allclose(whole, model(IDS, (DOMAINS + 1) % 3))


def test_what_the_mask_hides_changes_nothing():
    model = shaken(encoder()).double()
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[:, 3:] = False
    other = IDS.clone()
    other[:, 3:] = 7
    torch.testing.assert_close(model(IDS, None, mask), model(other, None, mask))
    torch.testing.assert_close(model(IDS, None, mask), model(IDS[:, :3]))


def test_losses_equal_the_official_ones():
    a, b = pairs()
    for (kind, normalize), want in OFFICIAL.items():
        assert float(mnr_loss(a, b, kind=kind, normalize=normalize)) == pytest.approx(
            want, abs=1e-12
        )


def test_losses_in_loops():
    a, b = pairs()
    logits = (2 * a @ b.T).numpy()
    rows = [np.log(np.exp(logits[i]).sum()) - logits[i, i] for i in range(6)]
    assert float(mnr_loss(a, b, kind="mnr", scale=2.0)) == pytest.approx(np.mean(rows))
    inner = ((a @ a.T + b @ b.T) / 2).numpy()
    share = np.exp(inner) / np.exp(inner).sum(axis=1, keepdims=True)
    logits = logits / 2
    total = 0.0
    for i in range(6):
        total += np.log(np.exp(logits[i]).sum()) - logits[i, share[i].argmax()]
        total += np.log(np.exp(logits[:, i]).sum()) - logits[share[:, i].argmax(), i]
    assert float(mnr_loss(a, b)) == pytest.approx(total / 12)


def test_plus_is_the_mean_of_both_directions_where_lengths_are_one():
    a, b = pairs()
    both = [mnr_loss(u, v, kind="mnr", normalize=True) for u, v in ((a, b), (b, a))]
    assert float(mnr_loss(a, b, normalize=True)) == pytest.approx(float(sum(both)) / 2)


def test_a_longer_vector_draws_the_targets_of_plus():
    a = torch.eye(3, dtype=torch.float64) + torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, 9, 0]])
    # <a_1, a_2> = 9 > <a_1, a_1> = 1, so row 1 aims at column 2
    logits = a @ a.T
    want = F.cross_entropy(logits, torch.tensor([0, 2, 2]))
    back = F.cross_entropy(logits.T, logits.softmax(dim=1).argmax(dim=0))
    assert float(mnr_loss(a, a)) == pytest.approx(float(want + back) / 2)


@pytest.mark.parametrize("kind", ["mnr", "plus"])
def test_gradients(kind):
    a, b = (x.requires_grad_() for x in pairs())
    assert torch.autograd.gradcheck(lambda u, v: mnr_loss(u, v, kind=kind), (a, b))


def test_cocitation_pairs_are_those_that_share_a_citing_paper():
    citations = np.array([[9, 0], [9, 1], [9, 1], [8, 0], [8, 1], [8, 2], [7, 3]])
    assert cocitation_pairs(citations).tolist() == [[0, 1], [0, 2], [1, 2]]
    assert cocitation_pairs(citations, at_least=2).tolist() == [[0, 1]]
    parts = np.array([0, 0, 1, 1])
    assert cocitation_pairs(citations, parts=parts).tolist() == [[0, 1]]
    assert cocitation_pairs(np.empty((0, 2), dtype=int)).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder(n_heads=3), "dim must be a multiple of n_heads 3"),
        (lambda: encoder(moe_blocks=(2,)), r"moe_blocks must be numbers in 0\.\.1"),
        (lambda: encoder(n_domains=2).upcycle(3), "n_domains must be 1 to be upcycled"),
        (lambda: encoder().upcycle(0), "n_domains must be at least 1"),
        (lambda: encoder().upcycle(3, (2,)), r"moe_blocks must be numbers in 0\.\.1"),
        (lambda: encoder()(IDS, DOMAINS), r"domains must be \(B,\) in 0\.\.0"),
        (lambda: encoder()(IDS + 20), r"ids must be in 0\.\.29"),
        (lambda: encoder()(IDS.repeat(1, 2)), r"ids must be of shape \(B, up to 7\)"),
        (lambda: encoder()(IDS, None, IDS[:2] > 0), r"mask must be of shape \(6, 5\)"),
        (
            lambda: mnr_loss(torch.ones(2, 3), torch.ones(3, 3)),
            "positive must be of anchor's shape",
        ),
        (
            lambda: mnr_loss(torch.ones(2, 3), torch.ones(2, 3), kind="clip"),
            "kind must be mnr or plus",
        ),
        (
            lambda: cocitation_pairs(np.array([[0, -1]])),
            r"citations must be \(M, 2\) whole numbers",
        ),
        (
            lambda: cocitation_pairs(np.array([[0, 5]]), parts=np.zeros(3)),
            "parts must be one for each",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
