"""The asked block in plain loops, what its residuals do, and the loss triplet by triplet.

No official code is known, so the oracle is the equations, in float64.
"""

import pytest
import torch
import torch.nn.functional as F

from etude.core import EtudeError
from etude.embeddings import (
    ConditionalCrossAttention,
    MultiSpaceEmbedder,
    attribute_triplet_loss,
)

TOKENS = torch.randn(5, 7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
ASKED = torch.tensor([0, 2, 1, 1, 0])


def block(**changes):
    arguments = {"n_attributes": 3, "n_heads": 2} | changes
    built = ConditionalCrossAttention(8, **arguments).double()
    generator = torch.Generator().manual_seed(2)
    for p in built.parameters():  # nothing is zero or one by its start
        p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return built


def embedder(**changes):
    return MultiSpaceEmbedder(
        8, n_attributes=3, n_heads=2, image_size=8, out_dim=5,
        generator=torch.Generator().manual_seed(3), **changes,
    ).double()  # fmt: skip


@pytest.mark.parametrize("condition", ["lookup", "one_hot"])
@pytest.mark.parametrize("residual", ["none", "image", "condition"])
def test_the_block_is_its_equations_in_loops(condition, residual):
    built = block(condition=condition, residual=residual)
    got = built(TOKENS, ASKED)
    for row, (tokens, a) in enumerate(zip(TOKENS, ASKED.tolist(), strict=True)):
        if condition == "lookup":
            c = built.attribute.weight[a]
        else:
            c = built.attribute.weight[:, a] + built.attribute.bias
        x = built.norms[0](tokens)
        pooled = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            q = built.query(c)[part]
            weights = [(q @ built.key(t)[part] / 2).exp() for t in x]
            values = [w * built.value(t)[part] for w, t in zip(weights, x, strict=True)]
            pooled.append(sum(values) / sum(weights))
        h = built.out(torch.cat(pooled))
        h = h + {"none": 0 * c, "image": tokens.mean(dim=0), "condition": c}[residual]
        want = built.norms[2](h + built.feed(built.norms[1](h)))
        torch.testing.assert_close(got[row], want)


def test_equal_queries_get_equal_answers():
    built = block()
    c = built.conditions(ASKED)[:, None]
    one, many = built.attend(TOKENS, c), built.attend(TOKENS, c.repeat(1, 7, 1))
    torch.testing.assert_close(many, one.repeat(1, 7, 1))


def test_without_a_query_every_attribute_gets_the_mean_of_the_values():
    built = block()
    torch.nn.init.zeros_(built.query.weight)
    torch.nn.init.zeros_(built.query.bias)
    mean = built.out(built.value(built.norms[0](TOKENS)).mean(dim=1))
    torch.testing.assert_close(built.attend(TOKENS, built.conditions(ASKED)[:, None])[:, 0], mean)
    torch.testing.assert_close(built(TOKENS, ASKED), built(TOKENS, 0 * ASKED))
    built.residual = "condition"  # tells attributes apart without looking
    assert not torch.allclose(built(TOKENS, ASKED)[1], built(TOKENS, 0 * ASKED)[1])


def test_the_order_of_tokens_does_not_matter_to_the_block():
    built = block()
    torch.testing.assert_close(built(TOKENS, ASKED), built(TOKENS.flip(1), ASKED))
    assert not torch.allclose(built(TOKENS, ASKED), built(TOKENS.roll(1, dims=0), ASKED))


def test_tokens_serve_all_attributes_and_embeddings_have_length_one():
    net = embedder(depth=3)
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    tokens = net.tokens(x)
    assert tokens.shape == (4, 4, 8)
    for a in range(3):
        asked = torch.full((4,), a)
        torch.testing.assert_close(net.embed(tokens, asked), net(x, asked))
        torch.testing.assert_close(net(x, asked).norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert not torch.allclose(net(x, torch.zeros(4).long()), net(x, torch.ones(4).long()))


def test_patches_and_blocks_in_loops():
    net = embedder(depth=2)
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    tokens = []
    for n, (i, j) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        patch = x[0, :, i : i + 4, j : j + 4].flatten()
        tokens.append(net.patches.weight.flatten(1) @ patch + net.patches.bias + net.positions[n])
    tokens = torch.stack(tokens)
    first = net.blocks[0]
    q, k, v = first.qkv(first.norms[0](tokens)).unflatten(1, (3, 2, 4)).unbind(1)
    seen = [(q[:, h] @ k[:, h].T / 2).softmax(dim=1) @ v[:, h] for h in range(2)]
    tokens = tokens + first.out(torch.cat(seen, dim=1))
    tokens = tokens + first.feed(first.norms[1](tokens))
    torch.testing.assert_close(net.tokens(x)[0], tokens)


def test_only_the_asked_attributes_condition_is_moved():
    built = block()
    built(TOKENS, torch.full((5,), 1)).square().sum().backward()
    assert [bool(g.any()) for g in built.attribute.weight.grad] == [False, True, False]


def test_the_loss_triplet_by_triplet():
    a, p, n = (F.normalize(TOKENS[:, i], dim=1) for i in range(3))
    rows = [max(0.0, 0.4 - float(a[i] @ p[i]) + float(a[i] @ n[i])) for i in range(5)]
    assert sum(rows) / 5 > 0.0
    assert float(attribute_triplet_loss(a, p, n, margin=0.4)) == pytest.approx(sum(rows) / 5)
    assert float(attribute_triplet_loss(a, a, -a)) == 0
    assert float(attribute_triplet_loss(a, p, p)) == pytest.approx(0.2)


def test_gradients():
    a, p, n = (F.normalize(TOKENS[:, i], dim=1).requires_grad_() for i in range(3))
    assert torch.autograd.gradcheck(lambda *z: attribute_triplet_loss(*z, margin=1.9), (a, p, n))
    built = block()
    tokens = TOKENS[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: built(t, ASKED[:2]), (tokens,))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: block(n_heads=3), "dim must be a positive multiple of n_heads 3"),
        (lambda: block(condition="word"), "condition must be lookup or one_hot"),
        (lambda: block(residual="all"), "residual must be one of none, image, condition"),
        (lambda: block()(TOKENS[..., :4]), r"tokens must be \(B, T, 8\)"),
        (lambda: block()(TOKENS, ASKED + 1), r"attributes must be \(B,\) int64 in 0\.\.2"),
        (lambda: block()(TOKENS, ASKED[:2]), r"attributes must be \(5,\)"),
        (lambda: block()(TOKENS, ASKED[0]), r"attributes must be \(B,\) int64"),
        (lambda: embedder()(torch.zeros(1, 3, 9, 9), ASKED[:1]), r"x must be \(B, 3, 8, 8\)"),
        (lambda: embedder(patch=3), "image_size must be a positive multiple of patch 3"),
        (
            lambda: attribute_triplet_loss(TOKENS[0], TOKENS[0], TOKENS[0, :2]),
            r"anchor must be \(B, D\) as positive and negative",
        ),
        (lambda: attribute_triplet_loss(*TOKENS[:3], margin=3), r"margin must be in 0\.\.2"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
