"""Binary paragraph vectors: the loss in loops, what rounding does, inference that moves nothing
else; the disambiguated skip-gram against its equations; bits counted one by one.

The released code (kagrze/disgram, 53f9af2) runs on Python 2 and TensorFlow 1 and holds the second
model only; compared with it by reading are the range of the starting vectors, the zeros of the
other tensors, the mean of output vectors without gradient and the soft sum of senses.
"""

import numpy as np
import pytest
import scipy.sparse
import torch

from etude.core import EtudeError
from etude.embeddings import BinaryPVDBOW, DisambiguatedSkipGram, hamming_search


def topics(n=60, seed=0):
    """Counts of 20 words: words 0-9 in even documents, 10-19 in odd ones."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((n, 20))
    for d in range(n):
        np.add.at(counts[d], rng.integers(10, size=12) + 10 * (d % 2), 1)
    return counts


def fitted(**changes):
    arguments = {"n_bits": 6, "n_steps": 150, "batch_size": 20, "lr": 0.05} | changes
    return BinaryPVDBOW(**arguments).fit(topics())


def skip_gram(**changes):
    generator = torch.Generator().manual_seed(0)
    arguments = {"n_words": 9, "n_senses": 3, "generator": generator} | changes
    model = DisambiguatedSkipGram(4, **arguments).double()
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return model


IDS = torch.tensor([[0, 1, 2], [5, 8, 5], [3, 0, 7]])


@pytest.mark.parametrize("code", ["binary", "sigmoid", "real"])
@pytest.mark.parametrize("real_dim", [0, 5])
def test_the_loss_is_its_equation_in_loops(code, real_dim):
    model = fitted(code=code, real_dim=real_dim, n_steps=5)
    counts, total, tokens = topics(), 0.0, 0.0
    shared = [model.words_, model.word_bias_, model.projection_, model.projection_bias_]
    for d, v in enumerate(model.vectors_.astype(float)):
        z = shared[2] @ v + shared[3] if real_dim else v
        s = 1 / (1 + np.exp(-z))
        b = {"binary": (s > 0.5).astype(float), "sigmoid": s, "real": z}[code]
        np.testing.assert_allclose(model.codes_[d], b, rtol=1e-4, atol=1e-5)
        scores = [float(w @ b + c) for w, c in zip(shared[0], shared[1], strict=True)]
        norm = np.log(np.exp(scores).sum())
        total += sum(n * (norm - x) for n, x in zip(counts[d], scores, strict=True))
        tokens += counts[d].sum()
    tensors = [torch.from_numpy(a) for a in shared if a is not None]
    got = model._loss(torch.from_numpy(model.vectors_), tensors, torch.from_numpy(counts).float())
    assert float(got) == pytest.approx(total / tokens, rel=1e-4)


def test_rounding_passes_the_sigmoids_gradient():
    model = fitted(n_steps=1)
    v = torch.randn(4, 6, requires_grad=True)
    out = model._activations(v, [])
    assert set(out.unique().tolist()) <= {0.0, 1.0}
    weight = torch.randn(4, 6)
    (out * weight).sum().backward()
    s = v.detach().sigmoid()
    torch.testing.assert_close(v.grad, weight * s * (1 - s))


def test_bits_tell_topics_apart_also_of_new_documents():
    model = fitted()
    assert model.codes_.dtype == np.uint8
    assert set(np.unique(model.codes_)) <= {0, 1}
    new = model.transform(topics(30, seed=9))
    for codes in (model.codes_, new):
        near, _ = hamming_search(codes, model.codes_, k=8)
        right = near % 2 == (np.arange(len(codes)) % 2)[:, None]
        assert right.mean() > 0.95


def test_training_lowers_the_loss_below_the_words_own_frequencies():
    model, counts = fitted(), torch.from_numpy(topics()).float()
    shared = [torch.from_numpy(model.words_), torch.from_numpy(model.word_bias_)]
    share = counts.sum(dim=0) / counts.sum()
    entropy = float(-(share * share.log()).sum())  # what a model without documents reaches
    assert float(model._loss(torch.from_numpy(model.vectors_), shared, counts)) < entropy - 0.5


def test_inference_leaves_the_model_alone_and_repeats():
    model = fitted(real_dim=5)
    before = {name: np.copy(value) for name, value in vars(model).items() if name.endswith("_")}
    new = topics(7, seed=3)
    first = model.transform(new)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(model, name), value)
    np.testing.assert_array_equal(first, model.transform(scipy.sparse.csr_array(new)))
    # what else is inferred at the same time does not matter
    np.testing.assert_allclose(model.embed(new)[:2], model.embed(new[:2]), atol=1e-4)
    assert model.embed(new).shape == (7, 5)


def test_words_start_at_their_frequencies():
    counts = topics()
    counts[:, 3] *= 5
    fitted_bias = BinaryPVDBOW(6, n_steps=1, lr=1e-6).fit(counts).word_bias_
    share = (counts.sum(axis=0) + 1) / (counts.sum() + 20)
    np.testing.assert_allclose(fitted_bias, np.log(share), atol=1e-5)


def test_one_seed_one_model():
    np.testing.assert_array_equal(fitted().vectors_, fitted().vectors_)
    assert not np.array_equal(fitted().vectors_, fitted(seed=1).vectors_)


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_the_skip_gram_is_its_equations_in_loops(training):
    model = skip_gram(temperature=0.7, entropy_weight=-0.3).train(training)
    model.generator = torch.Generator().manual_seed(5)
    got = float(model(IDS).detach())
    noise = torch.rand(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gumbel = -(-noise.log()).log()
    losses, entropies = [], []
    for row, ids in enumerate(IDS.tolist()):
        word, context = ids[0], ids[1:]
        mean = sum(model.outputs[c] for c in context) / 2
        q = torch.stack([mean @ model.disambiguation[word, k] + model.sense_bias[word, k]
                         for k in range(3)])  # fmt: skip
        share = ((q + gumbel[row]) / 0.7 if training else q).softmax(dim=0)
        vector = sum(share[k] * model.senses[word, k] for k in range(3))
        scores = model.outputs @ vector + model.output_bias
        losses += [float(scores.logsumexp(dim=0) - scores[c]) for c in context]
        p = q.softmax(dim=0)
        entropies.append(float(-(p * p.log()).sum()))
    assert got == pytest.approx(np.mean(losses) - 0.3 * np.mean(entropies))


def test_senses_start_alike_and_small():
    fresh = DisambiguatedSkipGram(4, n_words=9, n_senses=3, entropy_weight=1.0).eval()
    assert torch.equal(fresh.sense_logits(IDS[:, 0], IDS[:, 1:]), torch.zeros(3, 3))
    assert fresh.senses.abs().max() <= 0.5 / 12
    # uniform words and uniform senses
    assert float(fresh(IDS).detach()) == pytest.approx(np.log(9) + np.log(3), rel=1e-5)


def test_one_sense_is_skip_gram():
    model = skip_gram(n_senses=1)
    scores = model.senses[IDS[:, 0], 0] @ model.outputs.T + model.output_bias
    want = -scores.log_softmax(dim=1).gather(1, IDS[:, 1:]).mean()
    assert float(model(IDS).detach()) == pytest.approx(float(want.detach()))


def test_choosing_a_sense_sends_no_gradient_to_the_context():
    model = skip_gram()
    model.sense_logits(IDS[:, 0], IDS[:, 1:]).square().sum().backward()
    assert model.outputs.grad is None
    assert model.disambiguation.grad.any()


def test_the_relaxed_senses_are_drawn_by_their_probabilities():
    model = skip_gram(temperature=0.05)
    model.generator, q = (
        torch.Generator().manual_seed(1),
        model.sense_logits(IDS[:1, 0], IDS[:1, 1:]),
    )
    seen = []
    model.senses.data = torch.eye(4, dtype=torch.float64)[:3].repeat(9, 1, 1)
    real = torch.einsum

    def spy(pattern, *tensors):
        if pattern == "bk,bkd->bd":
            seen.append(tensors[0].detach())
        return real(pattern, *tensors)

    torch.einsum = spy
    try:
        model(IDS[:1].repeat(4000, 1))
    finally:
        torch.einsum = real
    share = torch.nn.functional.one_hot(seen[0].argmax(dim=1), 3).double().mean(dim=0)
    torch.testing.assert_close(share, q[0].detach().softmax(dim=0), atol=0.03, rtol=0)
    assert seen[0].max(dim=1).values.median() > 0.99  # nearly one-hot


def test_hamming_search_counts_bits():
    rng = np.random.default_rng(0)
    queries, documents = rng.integers(0, 2, (70, 13)), rng.integers(0, 2, (40, 13))
    ids, far = hamming_search(queries, documents, k=5)
    for b in range(70):
        distance = [sum(x != y for x, y in zip(queries[b], row, strict=True)) for row in documents]
        order = sorted(range(40), key=lambda i: (distance[i], i))[:5]
        assert ids[b].tolist() == order
        assert far[b].tolist() == [distance[i] for i in order]
    assert hamming_search(queries, documents[:3])[0].shape == (70, 3)
    assert hamming_search(queries[:0], documents)[0].shape == (0, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BinaryPVDBOW(code="bit"), "code must be one of binary, sigmoid, real"),
        (lambda: BinaryPVDBOW().transform(topics()), "this model must be fitted first"),
        (lambda: BinaryPVDBOW().fit(-topics()), "features must be counts"),
        (lambda: BinaryPVDBOW().fit(topics()[0]), r"features must be \(N, V\) with a document"),
        (lambda: BinaryPVDBOW().fit(topics() * np.nan), "features must be counts"),
        (lambda: BinaryPVDBOW().fit(np.eye(3)[:, :2]), "features must be with a word in every row"),
        (lambda: fitted(n_steps=1).transform(topics()[:, :19]), r"features must be \(N, 20\)"),
        (lambda: skip_gram()(IDS + 9), r"ids must be in 0\.\.8"),
        (lambda: skip_gram()(IDS[:, :1]), r"ids must be \(B, 1 \+ C\)"),
        (lambda: DisambiguatedSkipGram(temperature=0.0), "temperature must be positive"),
        (lambda: hamming_search(np.ones((1, 3)), np.ones((1, 4))), "queries must be of 4 bits"),
        (lambda: hamming_search(np.full((1, 3), 2), np.ones((1, 3))), "queries must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()
