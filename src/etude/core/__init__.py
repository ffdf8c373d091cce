"""The contract, ground floor: card, vocabulary, errors, state, index of all cards."""

from etude.core.card import FAMILIES, Card
from etude.core.errors import EtudeError, refuse, require
from etude.core.index import card_of, cards, load
from etude.core.state import get_state, n_bytes, set_state
from etude.core.vocabulary import check_names

__all__ = [
    "FAMILIES", "Card", "EtudeError", "card_of", "cards", "check_names", "get_state", "load",
    "n_bytes", "refuse", "require", "set_state",
]  # fmt: skip
