"""The catalogue: complete, in our own words, agreeing with the cards; and its names."""

import json
import re
import time

import pytest

from etude.core import FAMILIES, EtudeError, cards
from etude.core.card import FIDELITIES
from etude.papers import catalogue
from etude.papers.catalogue import card_for, nearest, paper_of, papers


def test_297_papers_each_named_once() -> None:
    everything = papers()
    assert len(everything) == 297
    assert len({paper.slug for paper in everything}) == 297
    assert len({catalogue.squeeze(paper.title) for paper in everything}) == 297
    ids = [paper.arxiv for paper in everything if paper.arxiv]
    assert len(set(ids)) == len(ids) > 290


def test_fields_hold_what_they_promise() -> None:
    for paper in papers():
        assert paper.family in FAMILIES
        assert re.fullmatch(r"[a-z][a-z0-9_]*", paper.slug)
        assert paper.fidelity in FIDELITIES
        assert paper.cost in ("S", "M", "L")
        assert 2013 <= paper.year <= 2026
        assert re.fullmatch(r"(\d{4}\.\d{4,5})?", paper.arxiv)
        assert re.fullmatch(r"([\w.-]+/[\w.-]+)?", paper.code)


def test_every_family_is_there() -> None:
    assert {paper.family for paper in papers()} == set(FAMILIES)


def test_moves_are_sentences_and_differ() -> None:
    moves = [paper.move for paper in papers()]
    assert len(set(moves)) == 297
    starts = {" ".join(move.split()[:6]) for move in moves}
    assert len(starts) > 290  # no template
    for move in moves:
        assert 12 <= len(move.split()) <= 45, move
        assert move[0].isupper(), move
        assert move.endswith("."), move


def test_keywords_are_needs_in_plain_words() -> None:
    for paper in papers():
        assert 3 <= len(paper.keywords) <= 8, paper.slug
        assert len(set(paper.keywords)) == len(paper.keywords)
        assert all(1 <= len(words.split()) <= 8 for words in paper.keywords), paper.slug


@pytest.mark.parametrize("key", list(cards()))
def test_card_agrees_with_the_catalogue(key: str) -> None:
    card = cards()[key]
    paper = paper_of(card.slug)
    assert card_for(paper) is card
    assert (card.title, card.year, card.arxiv, card.family) == (
        paper.title,
        paper.year,
        paper.arxiv,
        paper.family,
    )


@pytest.mark.parametrize(
    "text",
    [
        "2405.19504",
        "arXiv:2405.19504v2",
        "arxiv:2405.19504",
        "2405.19504v1",
        "https://arxiv.org/abs/2405.19504",
        "http://arxiv.org/abs/2405.19504v2",
        "https://arxiv.org/pdf/2405.19504v2.pdf",
        "https://arxiv.org/pdf/2405.19504",
        "arxiv.org/html/2405.19504v1",
        "https://arxiv.org/abs/2405.19504?context=cs#top",
        "https://huggingface.co/papers/2405.19504",
        "muvera",
        "MUVERA",
        "retrieval.muvera",
        "  muvera\n",
        "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings",
        "muvera:  multi-vector retrieval via fixed dimensional encodings",
    ],
)
def test_forms_of_a_name(text: str) -> None:
    assert paper_of(text).key == "retrieval.muvera"


def test_every_paper_is_found_by_each_of_its_names() -> None:
    for paper in papers():
        for name in (paper.slug, paper.key, paper.title, paper.arxiv or paper.slug):
            assert paper_of(name) is paper


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("muverra", "muvera"),
        ("matryoshka-representations", "matryoshka_representation"),
        ("Soft NMS", "soft_nms"),
        ("2405.19505", "muvera"),
    ],
)
def test_unknown_names_the_nearest_three(text: str, expected: str) -> None:
    with pytest.raises(EtudeError, match="no paper of the catalogue is called") as caught:
        paper_of(text)
    message = str(caught.value)
    named = message.rpartition("the nearest are ")[2].split(", ")
    assert len(named) == 3
    assert expected in named
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_empty_name_is_refused(text: str) -> None:
    with pytest.raises(EtudeError, match="paper must be a slug, an arXiv id"):
        paper_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "../../etc/passwd",
        "'; DROP TABLE paper; --",
        "\x00\x1b[2J",
        "arxiv:" * 9999,
    ],
)
def test_hostile_name_is_refused_quickly_in_one_line(text: str) -> None:
    begin = time.thread_time()  # work, not waiting: the machine may be busy
    with pytest.raises(EtudeError) as caught:
        paper_of(text)
    assert time.thread_time() - begin < 2
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_nearest_ranks_by_likeness() -> None:
    assert nearest("rank_me", 1)[0].slug == "rankme"
    assert len(nearest("anything", 5)) == 5


def test_damaged_catalogue_names_the_line(tmp_path, monkeypatch) -> None:
    lines = catalogue.CATALOGUE.read_text(encoding="utf-8").splitlines()
    broken = tmp_path / "catalogue.jsonl"
    broken.write_text("\n".join([lines[0], json.dumps({"title": "half"})]), encoding="utf-8")
    monkeypatch.setattr(catalogue, "CATALOGUE", broken)
    with pytest.raises(EtudeError, match=r"catalogue.jsonl, line 2: not a paper's facts"):
        papers.__wrapped__()
