"""Card, index, state, errors: the ground floor."""

import numpy as np
import pytest
import torch

from etude.core import Card, EtudeError, card_of, cards, get_state, load, n_bytes, set_state
from etude.core.errors import quote, refuse, require
from etude.core.index import read_card

FACTS = {
    "slug": "a_move", "family": "losses", "title": "A Move", "year": 2024, "arxiv": "2401.00001",
    "move": "moves", "task": "train", "claim": "it moves", "baseline": "cross_entropy",
    "metric": "accuracy", "better": "higher", "published": "", "fidelity": "full", "cost": "S",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slug": "A-Move"}, "slug must be snake_case"),
        ({"family": "cooking"}, "family must be one of losses"),
        ({"year": 24}, "year must be a year"),
        ({"arxiv": "2401.00001v2"}, "arxiv must be an id without version"),
        ({"claim": " "}, "claim must be said in words"),
        ({"better": "more"}, "better must be higher or lower"),
        ({"fidelity": "rough"}, "fidelity must be"),
        ({"cost": "XL"}, "cost must be"),
        ({"search": {"temperature": ()}}, "search"),
    ],
)
def test_card_refusals(change, message):
    assert Card(**FACTS).key == "losses.a_move"
    with pytest.raises(EtudeError, match=message):
        Card(**{**FACTS, **change})


def test_card_is_frozen():
    with pytest.raises(AttributeError):
        Card(**FACTS).year = 2025


def test_a_card_that_is_not_made_of_literals_is_refused(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("CARD = Card(slug=str('x'))\n")
    with pytest.raises(EtudeError, match="literals only"):
        read_card(path)
    path.write_text("x = 1\n")
    with pytest.raises(EtudeError, match="needs CARD"):
        read_card(path)


def test_card_of_takes_slug_key_and_arxiv_and_names_the_nearest():
    card = cards()["retrieval.muvera"]
    assert card_of("muvera") is card_of("retrieval.muvera") is card_of(card.arxiv) is card
    with pytest.raises(EtudeError, match=r"nearest are muvera, \w+, \w+"):
        card_of("muverra")
    assert load(card).__name__ == "MuveraEncoder"


def test_state_of_a_module_and_of_an_estimator_round_trips():
    module, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    set_state(other, get_state(module))
    assert torch.equal(module.weight, other.weight)
    assert n_bytes(module) == 4 * (3 * 2 + 2)

    class Estimator:
        pass

    fitted, empty = Estimator(), Estimator()
    fitted.mean_, fitted.count_, fitted.knob = np.ones((2, 3)), 7, "not state"
    state = get_state(fitted)
    assert set(state) == {"mean_", "count_"}
    set_state(empty, state)
    assert empty.count_ == 7
    np.testing.assert_array_equal(empty.mean_, fitted.mean_)
    state["mean_"][:] = 0
    assert fitted.mean_.all(), "the state is a copy"


def test_state_refusals():
    class Estimator:
        pass

    fitted = Estimator()
    fitted.words_ = [{"not": "an array"}]
    with pytest.raises(EtudeError, match="words_ must be an array"):
        get_state(fitted)
    with pytest.raises(EtudeError, match="does not fit Linear"):
        set_state(torch.nn.Linear(3, 2), {"weight": np.ones((5, 5))})


def test_messages_name_the_rule_and_a_short_value():
    with pytest.raises(EtudeError, match=r"^k must be positive, got -1$"):
        require(-1 > 0, "k", "positive", -1)
    with pytest.raises(EtudeError, match=r"shape \(2, 3\) of float64"):
        refuse("x", "small", np.ones((2, 3)))
    assert len(quote("x" * 1000)) == 80
    assert quote(np.ndarray) == "<class 'numpy.ndarray'>"
