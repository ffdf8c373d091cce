"""The matcher against the released one, its symmetries, and the contrast's denominators.

Released code: zhiweihu1103/MEL-M3EL at 9b99c42, codes/model/modeling_m3el.py (all widths 6, hidden
8) with our weights, each drawn 0.5 * normal in the order of parameters() by a torch generator of
seed 1; mentions (3, 7, 6), then entities (4, 7, 6), normal by a generator of seed 0, float64, 3
text tokens: the first row of scores and the sum of all. Contrast: its WeightedContrastiveLoss on
the first three entities' and the mentions' first vectors, at 0.03 and 0.5. Equal to 1e-15.
"""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from etude.core import EtudeError
from etude.retrieval import M3ELMatcher, intra_inter_contrastive

RELEASED = {
    False: ([3.478733508787318, 2.4640921044252084, 1.6869832363748687, 0.9381426155777769],
            25.13160019604954),
    True: ([3.605909237440789, 2.9010762037767294, 2.295956966044228, 1.6509380686653619],
           30.482438200697498),
}  # fmt: skip
CONTRAST = {0.03: 20.96106469128893, 0.5: 2.4018445414036513}


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 7, 6, generator=generator, dtype=torch.float64) for n in (3, 4)]


def drawn(both_ways=False, **knobs):
    matcher = M3ELMatcher(6, n_text_tokens=3, hidden_dim=8, both_ways=both_ways, **knobs).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in matcher.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return matcher


@pytest.mark.parametrize("both_ways", [False, True])
def test_same_as_the_released_matcher(sides, both_ways):
    scores = drawn(both_ways)(*sides)
    row, total = RELEASED[both_ways]
    assert scores[0].tolist() == pytest.approx(row, rel=1e-10)
    assert scores.sum().item() == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("both_ways", [False, True])
def test_the_score_is_the_mean_of_its_matrices(sides, both_ways):
    matcher = drawn(both_ways)
    parts = matcher.parts(*sides)
    assert len(parts) == 3 + both_ways
    torch.testing.assert_close(matcher(*sides), sum(parts) / len(parts))


def test_a_matrix_of_one_modality_against_a_slow_loop(sides):
    matcher, (mentions, entities) = drawn(), sides
    text = matcher.text
    for m in range(3):
        for e in range(4):
            cls_m, cls_e = (matcher.norms[0](v[0]) for v in (mentions[m], entities[e]))
            y, z = (matcher.norms[1](v[1:4]) for v in (mentions[m], entities[e]))
            context = torch.zeros(8, dtype=torch.float64)
            for token in z:
                weights = torch.stack([text.query(token) @ text.key(t) for t in y]) / 8**0.5
                context += (weights.softmax(0)[:, None] * text.value(y)).sum(dim=0) / 3
            want = (cls_m @ cls_e + text.norm(context) @ text.whole(cls_e)) / 2
            torch.testing.assert_close(matcher.parts(*sides)[0][m, e], want)


def test_the_order_of_tokens_does_not_matter(sides):
    matcher, (mentions, entities) = drawn(True), sides
    turned = mentions[:, [0, 3, 1, 2, 4, 6, 5]]
    torch.testing.assert_close(matcher(turned, entities), matcher(*sides))


def test_tokens_that_ask_one_whole_all_get_the_same(sides):
    cross = drawn().cross
    x, tokens = torch.randn(2, 8).double(), torch.randn(2, 3, 8).double()
    there = torch.ones(2, 3, dtype=torch.bool)
    back = cross.match(tokens, x[:, None], there[:, :1])
    torch.testing.assert_close(back, torch.relu(cross.turn(x))[:, None].expand(2, 3, 8))


def test_pooling_of_equal_tokens_is_one_plus_lambda_times_one(sides):
    # so image tokens of an entity tell cross-modally through (2) of the whole alone
    for both_ways in (False, True):
        first, second = (drawn(both_ways, pool_weight=w).parts(*sides)[2:] for w in (1.0, 0.0))
        assert not any(map(torch.allclose, first, second))
    from etude.retrieval.multilevel_mel_matching import _pool

    one = torch.randn(2, 1, 8).double()
    there = torch.ones(2, 4, dtype=torch.bool)
    torch.testing.assert_close(_pool(one.expand(2, 4, 8), there, 0.7), 1.7 * one[:, 0])


@pytest.mark.parametrize("both_ways", [False, True])
def test_what_is_masked_is_as_if_it_were_not_there(both_ways):
    generator = torch.Generator().manual_seed(2)
    full = [torch.randn(n, 9, 6, generator=generator, dtype=torch.float64) for n in (3, 4)]
    there = torch.ones(9, dtype=torch.bool)
    there[[2, 6]] = False  # one of three text tokens, one of four image tokens
    for side in full:
        side[:, ~there] *= 100
    masks = [there.expand(len(side), 9) for side in full]
    matcher = drawn(both_ways)
    fewer = M3ELMatcher(6, n_text_tokens=2, hidden_dim=8, both_ways=both_ways).double()
    fewer.load_state_dict(matcher.state_dict())
    wanted = fewer.parts(*(side[:, there] for side in full))
    for one, other in zip(matcher.parts(*full, *masks), wanted, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        matcher(*full, query_mask=masks[0], document_mask=masks[1]), sum(wanted) / len(wanted)
    )


@pytest.mark.parametrize("temperature", [0.03, 0.5])
def test_contrast_same_as_the_released_one(sides, temperature):
    mentions, entities = sides[0][:, 0], sides[1][:3, 0]
    found = intra_inter_contrastive(mentions, entities, temperature=temperature).item()
    assert found == pytest.approx(CONTRAST[temperature], rel=1e-12)


def test_without_intra_weight_constants_stay_unless_masked(sides):
    a, b = (normalize(side[:3, 0], dim=1) for side in sides)
    s = a @ b.T / 0.5
    constants = [
        -torch.log(t.diag().exp() / (t.exp().sum(dim=1) + 3)).mean().item() / 2 for t in (s, s.T)
    ]
    given = {"temperature": 0.5, "intra_weight": 0.0}
    assert intra_inter_contrastive(a, b, **given).item() == pytest.approx(sum(constants))
    masked = intra_inter_contrastive(a, b, self_masked=True, **given).item()
    fewer = [
        -torch.log(t.diag().exp() / (t.exp().sum(dim=1) + 2)).mean().item() / 2 for t in (s, s.T)
    ]
    assert masked == pytest.approx(sum(fewer))


def test_one_pair_with_itself_masked_is_certain(sides):
    one = sides[0][:1, 0]
    assert intra_inter_contrastive(one, 2 * one, self_masked=True).item() == 0.0


@pytest.mark.parametrize("self_masked", [False, True])
def test_the_loss_adds_the_score_each_matrix_and_the_contrasts(sides, self_masked):
    matcher, mentions, entities = drawn(), sides[0], sides[1][:3]
    parts, own = matcher.parts(mentions, entities), torch.arange(3)
    want = cross_entropy(sum(parts) / 3, own) + sum(cross_entropy(p, own) for p in parts)
    for whole in (0, 4):
        want = want + 0.5 * intra_inter_contrastive(
            mentions[:, whole], entities[:, whole], self_masked=self_masked
        )
    torch.testing.assert_close(matcher.loss(mentions, entities, self_masked=self_masked), want)


def test_gradients(sides):
    matcher = drawn()
    inputs = [side[:2, :6].clone().requires_grad_() for side in sides]
    assert torch.autograd.gradcheck(matcher.loss, inputs)


def test_training_brings_the_own_entity_first():
    generator = torch.Generator().manual_seed(0)
    entities = torch.randn(12, 7, 6, generator=generator)
    mentions = entities + 0.3 * torch.randn(12, 7, 6, generator=generator)
    torch.manual_seed(0)
    matcher = M3ELMatcher(6, n_text_tokens=3, hidden_dim=8)
    optimizer = torch.optim.Adam(matcher.parameters(), lr=1e-2)
    before = matcher.loss(mentions, entities).item()
    for _ in range(20):
        optimizer.zero_grad()
        loss = matcher.loss(mentions, entities)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.7 * before
    assert np.mean(matcher(mentions, entities).argmax(dim=1).numpy() == np.arange(12)) > 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: M3ELMatcher(6, n_text_tokens=0), "n_text_tokens must be at least 1"),
        (lambda: M3ELMatcher(6, hidden_dim=0), "hidden_dim must be"),
        (lambda: M3ELMatcher(6, pool_weight=-1.0), "pool_weight must be"),
        (lambda: drawn()(torch.ones(2, 5, 6), torch.ones(2, 7, 6)), "queries must be"),
        (lambda: drawn()(torch.ones(2, 7, 6), torch.ones(2, 6)), "documents must be"),
        (lambda: drawn().loss(torch.ones(2, 7, 6), torch.ones(3, 7, 6)), "documents must be 2"),
        (lambda: intra_inter_contrastive(torch.ones(2, 3), torch.ones(3, 3)), "second must be"),
        (
            lambda: intra_inter_contrastive(torch.ones(2, 3), torch.ones(2, 3), temperature=0.0),
            "temperature must be",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(EtudeError, match=message):
        call()


def test_refusals_of_masks(sides):
    for missing in (slice(1, 4), slice(5, 7)):  # of text, of image
        none = torch.ones(3, 7, dtype=torch.bool)
        none[1, missing] = False
        with pytest.raises(EtudeError, match="a token of each modality"):
            drawn()(*sides, query_mask=none)
    with pytest.raises(EtudeError, match="mask of queries must be"):
        drawn()(*sides, query_mask=none[:2])
