"""Search of any documents by words and by meaning: ``Index`` and its ``Document``."""

from etude.papers.search.document import Document
from etude.papers.search.index import Index

__all__ = ["Document", "Index"]
