"""The papers: a catalogue of them all, search over it, and what was measured here."""

from etude.papers.catalogue import Paper, paper_of, papers

__all__ = ["Paper", "paper_of", "papers"]
