"""What an index holds, and the text of it that is encoded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

__all__ = ["Document"]


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        id: stable and unique in an index; a document added under a known id replaces the other.
        title, text: what is searched by words and by meaning.
        authors, categories: searched by ``au:`` and ``cat:`` only.
        date: "YYYY-MM-DD", "YYYY-MM", "YYYY" or "".
        family: a name to filter by, or "".
        runnable: whether a method here plays it.
    """

    id: str
    title: str
    text: str = ""
    authors: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    date: str = ""
    family: str = ""
    runnable: bool = False

    @property
    def encoded(self) -> str:
        """The text that its vector is made from."""
        title = self.title.strip()
        return f"{title}. {self.text}" if self.text else title

    @property
    def sum(self) -> bytes:
        """16 bytes of the sha256 of the encoded text: equal sums need no new vector."""
        return hashlib.sha256(self.encoded.encode("utf-8", "replace")).digest()[:16]
