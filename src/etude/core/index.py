"""The index of all cards, read from the source text so that nothing heavy is imported."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from etude.core.card import FAMILIES, Card
from etude.core.errors import EtudeError

__all__ = ["card_of", "cards", "load", "public_names"]

PACKAGE = Path(__file__).resolve().parent.parent


def _statements(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body


def _assigned(path: Path, name: str) -> ast.expr | None:
    """The expression that the module at `path` assigns to `name` at its top level."""
    for node in _statements(path):
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == [name]:
            return node.value
    return None


def read_card(path: Path) -> Card:
    """The ``CARD`` of one method file, without importing it.

    Raises:
        EtudeError: no CARD, or one that is not made of literals.
    """
    call = _assigned(path, "CARD")
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Card" or call.args:
        raise EtudeError(f"{path.name}: a method file needs CARD = Card(name=literal, ...)")
    try:
        facts = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except ValueError:
        raise EtudeError(f"{path.name}: CARD must be made of literals only") from None
    return Card(**facts)


@cache
def cards() -> dict[str, Card]:
    """All cards by key (``family.slug``), in the order of families and names."""
    found = {}
    for family in FAMILIES:
        for path in sorted((PACKAGE / family).glob("[a-z]*.py")):
            card = read_card(path)
            if (card.family, card.slug) != (family, path.stem):
                raise EtudeError(f"{family}/{path.name}: its card says {card.key}")
            found[card.key] = card
    return found


def card_of(name: str) -> Card:
    """The card for a slug (``muvera``), a key (``retrieval.muvera``) or an arXiv id.

    Raises:
        EtudeError: unknown; the message names the three nearest.
    """
    everything = cards()
    for card in everything.values():
        if name in (card.key, card.slug, card.arxiv):
            return card
    near = get_close_matches(name.rpartition(".")[2], [c.slug for c in everything.values()], 3, 0)
    raise EtudeError(f"no method is called {name!r}; the nearest are {', '.join(near)}")


def public_names(card: Card) -> list[str]:
    """The module's ``__all__``, read without importing it; the first is the method itself."""
    value = _assigned(PACKAGE / card.family / f"{card.slug}.py", "__all__")
    if value is None:
        raise EtudeError(f"{card.key}: no __all__")
    return list(ast.literal_eval(value))


def load(card: Card) -> Callable[..., Any]:
    """Import the module and return the method: the first name of its ``__all__``."""
    method: Callable[..., Any] = getattr(
        importlib.import_module(card.module), public_names(card)[0]
    )
    return method
