"""The contrast of text triplets against the released code and slow loops; what moves in training.

Released code: jaeseokbyun/RTD at 5ed1ee7, utils.contrastive_loss. Inputs: torch generator of seed
0, float64, six anchors, then six positives of width 5, drawn normal; temperatures 0.07 and 0.5.
Ours were equal to 1e-14.
"""

import numpy as np
import pytest
import torch
from torch import nn

from etude.core import EtudeError
from etude.retrieval import RTDTrainer, refined_concat, text_triplet_contrast

RELEASED = {0.07: 10.662118197424908, 0.5: 2.8213657478523166}
SLOT = 1  # the number of "[$]"


class Tower(nn.Module):
    """Sum of embeddings plus positions, through a layer: the least that can be order-aware."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 6), nn.Linear(6, 5)
        self.position = nn.Parameter(torch.randn(4, 6))

    def forward(self, tokens, word=None):
        x = self.embedding(tokens)
        if word is not None:
            x = torch.where((tokens == SLOT)[..., None], word[:, None], x)
        return self.out(torch.tanh(x + self.position).sum(dim=1))


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in "ab"]


@pytest.fixture
def given():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower, phi = Tower(), nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5))
        words = torch.randint(2, 9, (3, 16, 4))
    composed, alone = words[1].clone(), words[2].clone()
    composed[:, 1], alone[:, 1] = SLOT, SLOT
    texts = {"reference": words[0], "composed": composed, "alone": alone, "target": words[1]}
    return tower, phi, texts


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_same_as_the_released_code(pairs, temperature):
    ours = text_triplet_contrast(*pairs, temperature=temperature).item()
    assert ours == pytest.approx(RELEASED[temperature], rel=1e-12)


def test_against_a_slow_loop(pairs):
    z = [v / v.norm() for side in pairs for v in side]
    total = 0.0
    for k in range(12):
        parts = {j: float(torch.exp(z[k] @ z[j] / 0.2)) for j in range(12) if j != k}
        total -= np.log(parts[(k + 6) % 12] / sum(parts.values())) / 12
    ours = text_triplet_contrast(*pairs, temperature=0.2)
    assert ours.item() == pytest.approx(total, rel=1e-12)


def test_sides_and_lengths_do_not_matter(pairs):
    a, b = pairs
    first = text_triplet_contrast(a, b)
    torch.testing.assert_close(first, text_triplet_contrast(b, a))
    torch.testing.assert_close(first, text_triplet_contrast(3 * a, 0.1 * b))


def test_one_pair_has_nothing_to_be_told_from(pairs):
    assert text_triplet_contrast(pairs[0][:1], pairs[1][:1]).item() == 0.0


def test_same_side_vectors_are_negatives(pairs):
    a, b = pairs
    near = torch.cat([a[:1], a[:1] + 0.01 * a[1:2]])  # two anchors that are almost one
    far = torch.stack([a[0], -a[0]])
    targets = b[:2]
    assert text_triplet_contrast(near, targets) > text_triplet_contrast(far, targets)


def test_gradcheck(pairs):
    inputs = [side.requires_grad_() for side in pairs]
    assert torch.autograd.gradcheck(lambda a, b: text_triplet_contrast(a, b), inputs)


def test_noise_is_one_share_a_row_of_normal_noise():
    features = torch.zeros(4000, 300)
    generator = torch.Generator().manual_seed(0)
    found = refined_concat(features, lambda x: x, noise_scale=0.5, generator=generator)
    spread = found.std(dim=1)  # about 0.5 u, u uniform
    assert spread.mean().item() == pytest.approx(0.25, abs=0.01)
    assert spread.std().item() == pytest.approx(0.5 / 12**0.5, abs=0.01)
    assert spread.max().item() < 0.6


def test_without_noise_an_exact_pseudo_word_gives_the_plain_sentence(given):
    tower = given[0]
    reference = torch.tensor([[2], [5], [7]])
    known = {2: 0, 5: 1, 7: 2}

    def phi(features):  # inverts the encoder on these three one-word captions
        table = torch.cat([tower(r[None].expand(1, 4)) for r in reference])
        rows = torch.cdist(features, table).argmin(dim=1)
        words = torch.tensor(list(known))[rows]
        return tower.embedding(words)

    features = tower(reference.expand(3, 4))
    word = refined_concat(features, phi, noise_scale=0.0)
    template = torch.tensor([[3, SLOT, 4, 8]]).expand(3, 4)
    plain = template.clone()
    plain[:, 1] = reference[:, 0]
    torch.testing.assert_close(tower(template, word), tower(plain))


def test_only_the_copy_moves(given):
    tower, phi, texts = given
    before = {k: v.clone() for k, v in [*tower.state_dict().items(), *phi.state_dict().items()]}
    phi.train()
    trainer = RTDTrainer(n_steps=40, batch_size=8, lr=1e-2, noise_scale=0.0)
    tuned = trainer.tune(tower, phi, **texts)
    after = dict([*tower.state_dict().items(), *phi.state_dict().items()])
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(w.grad is None for part in (tower, phi) for w in part.parameters())
    assert phi.training
    assert not torch.equal(tuned.out.weight, tower.out.weight)
    assert np.mean(trainer.losses_[-5:]) < 0.9 * np.mean(trainer.losses_[:5])


def test_only_the_copy_is_in_training_mode(given):
    tower, phi, texts = given
    seen = set()
    for part in (tower, phi):  # the copy has the hook, too
        part.register_forward_hook(
            lambda module, *_: seen.add((module is tower, module is phi, module.training))
        )
    for training in (True, False):
        tower.train(training)
        phi.train(not training)
        seen.clear()
        tuned = RTDTrainer(n_steps=1, batch_size=8).tune(tower, phi, **texts)
        assert seen == {(True, False, False), (False, True, False), (False, False, True)}
        assert (tower.training, phi.training, tuned.training) == (training, not training, training)


def test_the_first_loss_has_both_rows_of_pairs_and_phi_without_dropout(given):
    tower, phi, texts = given
    with torch.no_grad():
        of_reference, of_target = tower(texts["reference"]), tower(texts["target"])
        word = phi.eval()(of_reference)
        first = tower(texts["composed"], word)
        both = torch.cat([first, tower(texts["alone"], word)])
        want = {
            True: text_triplet_contrast(both, torch.cat([of_target, of_reference])),
            False: text_triplet_contrast(first, of_target),
        }
    for pairs_too, loss in want.items():
        trainer = RTDTrainer(n_steps=1, batch_size=16, noise_scale=0.0, reference_pairs=pairs_too)
        trainer.tune(tower, phi, **texts)
        assert trainer.losses_[0] == pytest.approx(loss.item(), rel=1e-5)


def test_same_seed_same_tower(given):
    tower, phi, texts = given
    first, second, third = (
        RTDTrainer(n_steps=3, batch_size=4, lr=1e-2, seed=s).tune(tower, phi, **texts)
        for s in (1, 1, 2)
    )
    assert torch.equal(first.out.weight, second.out.weight)
    assert not torch.equal(first.out.weight, third.out.weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RTDTrainer(temperature=0.0), "temperature must be positive"),
        (lambda: RTDTrainer(noise_scale=-1.0), "noise_scale must be at least 0"),
        (lambda: RTDTrainer(lr=0.0), "lr must be positive"),
        (lambda: text_triplet_contrast(torch.ones(2, 3), torch.ones(3, 3)), "positive must be"),
        (lambda: text_triplet_contrast(torch.ones(3), torch.ones(3)), "anchor must be"),
        (lambda: refined_concat(torch.ones(3), abs), "features must be"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()


def test_refusal_of_texts_that_do_not_fit(given):
    tower, phi, texts = given
    with pytest.raises(EtudeError, match="alone must be of shape"):
        RTDTrainer(n_steps=1).tune(tower, phi, **(texts | {"alone": texts["alone"][:3]}))
