"""LexLIP against slow loops, the bounds of its regularizer, and the released formulas.

Released code: ChiYeungLaw/LexLIP-ICCV23 at commit 1f20f45, Phase1/src/modules: the pooling lines
of itr_module.encode_text and objectives.FLOAP with the contrast of compute_contrastive. Inputs by
torch's CPU generator, seed 0, in float64: randn(3, 4, 6) and randn(3, 4, 6) as logits of texts
and images, the second text's last two positions masked; embeddings randn(6, 2). Their loss and
bottleneck are the numbers below; ours were equal to 1e-12.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from etude.core import EtudeError
from etude.experiments.retrieval.lexlip import N_WORDS, _recall, word_scenes
from etude.retrieval import InvertedIndex, LexiconEncoder, flops_regularizer, lexicon_bottleneck
from etude.retrieval.lexlip import _weights

LOSS = 2.8767586720945144
BOTTLENECK = [0.10784464267730158, 0.6058975683007093]


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def encoder(**changes):
    facts = {"n_words": 12, "n_tokens": 7, "n_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LexiconEncoder(8, **(facts | changes)).double().eval()


IDS = torch.tensor([[1, 5, 6, 7, 0], [1, 8, 3, 0, 0], [1, 4, 9, 10, 11]])


def test_same_as_the_released_code():
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(3, 4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    embeddings = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2:] = False
    net = encoder()
    loss = net._contrast(_weights(text, mask), _weights(image))
    assert loss.item() == pytest.approx(LOSS, rel=1e-12)
    found = lexicon_bottleneck(text, embeddings, mask)[1]
    np.testing.assert_allclose(found, BOTTLENECK, rtol=1e-12)


def test_weights_against_loops_and_their_zeros():
    logits, mask = normal(2, 3, 5), torch.tensor([[True, True, False], [True, True, True]])
    logits[0, 2] = 99.0  # padding
    logits[1, :, 1] = -1.0
    found = _weights(logits, mask)
    for b in range(2):
        for v in range(5):
            best = max(float(logits[b, t, v]) for t in range(3) if mask[b, t])
            assert found[b, v].item() == pytest.approx(np.log1p(max(best, 0)))
    assert found[1, 1] == 0
    assert (_weights(-normal(2, 3, 5).abs()) == 0).all()


def test_no_gradient_reaches_the_embeddings_through_the_bottleneck():
    logits, embeddings = normal(2, 3, 5).requires_grad_(), normal(5, 4, seed=1).requires_grad_()
    found = lexicon_bottleneck(logits, embeddings)
    probs = logits.amax(1).softmax(1)  # of the raw logits, not of the weights
    torch.testing.assert_close(found, probs @ embeddings)
    found.square().sum().backward()
    assert embeddings.grad is None
    assert logits.grad.abs().sum() > 0
    fixed = embeddings.detach()
    assert torch.autograd.gradcheck(
        lambda z: lexicon_bottleneck(z, fixed), (normal(2, 3, 5).requires_grad_(),)
    )


def test_flops_on_rows_of_length_one_is_the_mean_cosine_of_pairs():
    rows = F.normalize(normal(6, 9).abs(), dim=1)
    cosines = [float(a @ b) for a in rows for b in rows]
    assert flops_regularizer(rows).item() == pytest.approx(np.mean(cosines))
    assert flops_regularizer(rows[:1].repeat(4, 1)).item() == pytest.approx(1)
    assert flops_regularizer(torch.eye(5)).item() == pytest.approx(1 / 5)  # disjoint supports
    shared, spread = torch.zeros(4, 8), torch.full((4, 8), 1 / 8)
    shared[:, 0] = 1
    assert flops_regularizer(shared).item() == pytest.approx(1)
    assert flops_regularizer(spread).item() == pytest.approx(1 / 8)
    assert flops_regularizer(torch.zeros(4, 8)) == 0
    assert flops_regularizer(torch.tensor([[1.0], [-1.0]])) == 1


def test_the_index_scores_as_the_dense_product():
    rng = np.random.default_rng(0)
    items, queries = (
        np.where(rng.random((n, 30)) < 0.2, rng.random((n, 30)), 0).astype(np.float32)
        for n in (50, 8)
    )
    items[3] = 0
    index = InvertedIndex().build(items)
    ids, scores = index.search(queries, k=50)
    full = queries.astype(float) @ items.T.astype(float)
    np.testing.assert_allclose(np.take_along_axis(full, ids, 1), scores, atol=1e-6)
    np.testing.assert_array_equal(ids[:, :5], np.argsort(-full, axis=1, kind="stable")[:, :5])
    assert np.isclose(np.sort(full, axis=1)[:, ::-1], scores, atol=1e-6).all()
    assert index.n_bytes == 8 * np.count_nonzero(items) + 4 * 31


def test_the_encoders_ignore_padding():
    net = encoder()
    longer = F.pad(IDS, (0, 2))
    torch.testing.assert_close(net.encode_text(IDS), net.encode_text(longer))
    assert (net.encode_text(IDS) >= 0).all()
    tokens, mask = normal(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    other = tokens.clone()
    other[~mask] = 5.0
    torch.testing.assert_close(net(tokens, mask), net(other, mask))
    assert (net(tokens) - net(other)).abs().max() > 1e-3


def test_masks_spare_special_words_and_leave_none_out():
    net = encoder(generator=torch.Generator().manual_seed(1))
    ids = torch.cat([IDS] * 200)
    hidden, chosen = net._masked(ids, 0.3)
    assert (hidden[chosen] == 2).all()
    assert torch.equal(hidden[~chosen], ids[~chosen])
    assert (ids[chosen] >= 3).all()
    assert chosen.any(1).all()
    # of two to four words 30 % each, at least one: 0.3 n + 0.7^n (nothing drawn) words a text
    want = sum(0.3 * n + 0.7**n for n in (3, 2, 4)) / 9
    assert (chosen.sum() / (ids >= 3).sum()).item() == pytest.approx(want, abs=0.03)


def test_the_loss_is_the_sum_of_its_parts():
    tokens = normal(3, 6, 8, seed=2)
    net = encoder(generator=torch.Generator().manual_seed(4), flops_weight=0.5)
    found = net.loss(IDS, tokens)
    net.generator.manual_seed(4)
    hidden, chosen = net._masked(IDS, 0.3)
    harder, targets = net._masked(IDS, 0.5)
    total = net.contrast(IDS, tokens)
    logits = net.text_logits(hidden)
    total = total + F.cross_entropy(logits[chosen], IDS[chosen])
    for source, mask in ((logits, IDS != 0), (net.image_logits(tokens), None)):
        h = lexicon_bottleneck(source, net.words.weight, mask)
        total = total + F.cross_entropy(net.decode(harder, h)[targets], IDS[targets])
    torch.testing.assert_close(found, total)
    w = [F.normalize(x.detach(), dim=1) for x in (net.encode_text(IDS), net(tokens))]
    near = (w[0] @ w[1].T / 0.05).numpy()
    rows = np.log(np.exp(near).sum(1)) - np.diag(near)
    columns = np.log(np.exp(near).sum(0)) - np.diag(near)
    flops = sum(float(x.mean(0).square().sum()) for x in w)
    want = (rows.mean() + columns.mean()) / 2 + 0.5 * flops
    assert net.contrast(IDS, tokens).item() == pytest.approx(want)


def test_what_is_masked_of_an_image_is_not_in_the_loss():
    net = encoder(generator=torch.Generator())
    tokens, mask = normal(3, 6, 8, seed=2), torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = False
    other = tokens.clone()
    other[~mask] = 5.0
    found = []
    for patches in (tokens, other):
        net.generator.manual_seed(4)
        found.append(net.loss(IDS, patches, mask))
    torch.testing.assert_close(*found)


def test_texts_and_images_have_places_of_their_own():
    net, tokens = encoder(), normal(3, 6, 8, seed=2)
    text, image = net.encode_text(IDS), net(tokens)
    with torch.no_grad():
        net.places.weight[7:] += normal(7, 8, seed=3)
    torch.testing.assert_close(net.encode_text(IDS), text)
    assert not torch.allclose(net(tokens), image)
    image = net(tokens)
    with torch.no_grad():
        net.places.weight[:7] += normal(7, 8, seed=4)
    torch.testing.assert_close(net(tokens), image)
    assert not torch.allclose(net.encode_text(IDS), text)


def test_each_word_has_a_bias():
    net, bias = encoder(), normal(12, seed=5)
    logits = net.text_logits(IDS)
    with torch.no_grad():
        net.bias += bias
    torch.testing.assert_close(net.text_logits(IDS), logits + bias)


def test_the_decoder_reads_the_bottleneck():
    net = encoder(depth=3)
    assert [len(x) for x in (net.text, net.image, net.decoder)] == [3, 3, 2]
    one = net.decode(IDS, normal(3, 8))
    assert (one - net.decode(IDS, normal(3, 8, seed=1)))[:, 1:].abs().max() > 1e-3
    other = IDS.clone()
    other[:, 0] = 2  # the first word itself is not read
    torch.testing.assert_close(one, net.decode(other, normal(3, 8)))


def test_scenes_show_what_their_captions_say():
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((80, 64)) / 8
    ids, patches = word_scenes(rng, parts, 30)
    assert ids.shape == (30, 9)
    assert int(ids.max()) < N_WORDS
    for row, scene in zip(ids.numpy(), patches.numpy(), strict=True):
        for adjective, noun in row[1:7].reshape(3, 2):
            there = parts[noun - 3] + parts[adjective - 3]
            assert np.linalg.norm(scene - there, axis=1).min() < 0.8


def test_rows_of_zeros_find_nothing():
    rows = np.eye(6, dtype=np.float32)
    assert _recall(rows, rows, 1) == 1
    assert _recall(0 * rows, rows, 5) == 0
    assert _recall(rows, np.roll(rows, 1, axis=0), 1) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encoder(n_heads=3), "dim must be a multiple of 3 heads"),
        (lambda: encoder(n_words=3), "n_words must be at least 4"),
        (lambda: encoder(temperature=0.0), "temperature must be positive"),
        (lambda: encoder(decoder_masking=1.0), "decoder_masking must be between"),
        (lambda: encoder()(normal(1, 8, 8)), "tokens must be of 3 axes and at most 7"),
        (lambda: encoder().loss(IDS[:1, :1], normal(1, 2, 8)), "at least one word from 3"),
        (lambda: lexicon_bottleneck(normal(2, 3), normal(3, 2)), r"logits must be \(B, T, V\)"),
        (lambda: flops_regularizer(torch.ones(3)), r"weights must be \(B, V\)"),
        (lambda: InvertedIndex().build(-np.ones((2, 3))), "vectors must be finite, at least 0"),
        (lambda: InvertedIndex().search(np.ones((1, 3))), "queries must be asked after build"),
        (lambda: InvertedIndex().build(np.eye(3)).search(np.eye(3), k=4), r"k must be in 1\.\.3"),
        (lambda: InvertedIndex().build(np.eye(3)).search(np.eye(2), k=1), "queries must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
