"""The generated pages: that they are fresh, and that staleness is noticed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from etude.cli import VERBS
from etude.core import cards
from etude.papers.evidence import evidence

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_of_the_repository_are_fresh():
    words = [sys.executable, "docs/build.py", "--check"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_changed_a_missing_and_a_left_over_page_are_stale(build, tmp_path):
    build.write(tmp_path)
    assert build.stale(tmp_path) == []
    commands = tmp_path / "commands.md"
    commands.write_text(commands.read_text().replace("Exit status", "Status"))
    (tmp_path / "evidence.md").unlink()
    (tmp_path / "reference" / "gone.md").write_text("x")
    assert build.stale(tmp_path) == ["commands.md", "evidence.md", "reference/gone.md"]
    build.write(tmp_path)
    assert build.stale(tmp_path) == []


def test_every_verb_and_every_method_has_its_section(build):
    pages = build.pages()
    for verb in VERBS:
        assert f"\n## etude {verb}\n" in pages["commands.md"]
    assert "Usage: etude data info [OPTIONS] SOURCE" in pages["commands.md"]
    for card in cards().values():
        page = pages[f"reference/{card.family}.md"]
        assert f"\n## {card.slug}\n" in page
        assert build.inline(card.claim) in page
        assert "(1)" in page
        line = next(x for x in pages["evidence.md"].splitlines() if f"#{card.slug})" in x)
        heads = [row for row in evidence(card.slug) if row["headline"]]
        assert f"**{heads[0]['verdict'] if heads else 'not measured yet'}**" in line


def test_prose_is_shown_letter_by_letter_and_equations_are_code(build):
    doc = "A sum of R* and R*_01 < 1:\n\n    a_k = b * c_k                 (1)\n\nthen `x_1` of `"
    assert build.prose(doc).splitlines() == [
        "A sum of R\\* and R\\*\\_01 \\< 1:", "", "    a_k = b * c_k                 (1)", "",
        "then 'x\\_1' of '",
    ]  # fmt: skip
    assert build.inline("a_b of `c_d` | e") == "a\\_b of `c_d` \\| e"


def test_a_family_opens_with_what_was_measured_and_what_holds_first(build, monkeypatch):
    own = [card for card in cards().values() if card.family == "losses"][:4]
    row = {
        "metric": "accuracy", "data": "digits", "setting": "40 % noise", "baseline_name": "x",
        "ours_mean": 0.9, "baseline_mean": 0.8, "difference": 0.1, "low": 0.05, "high": 0.15,
        "headline": True, "seeds": 5, "seconds": 12.4,
    }  # fmt: skip
    found = dict(zip(
        (card.slug for card in own),
        ("does not hold at this scale", None, "holds", "undecided"), strict=True,
    ))  # fmt: skip

    def evidence_of(slug):
        verdict = found[slug]
        rows = [] if verdict is None else [{**row, "verdict": verdict}]
        return [*rows, {**row, "headline": False, "verdict": "holds", "data": "elsewhere"}]

    monkeypatch.setattr(build, "evidence", evidence_of)
    text = build.choice(own)
    lines = [line for line in text.splitlines() if line.startswith("| [")]
    order = [line.split("]")[0].removeprefix("| [") for line in lines]
    assert order == [own[k].slug for k in (2, 3, 0, 1)]
    assert "**holds** | digits 40 % noise | accuracy ↑ +0.1 [+0.05, +0.15] | `x` | 12 s" in lines[0]
    assert "not measured yet" in lines[-1]
    assert "elsewhere" not in text


def test_every_family_page_has_the_table_before_its_methods(build):
    for family in {card.family for card in cards().values()}:
        page = build.family_page(family)
        heads = [line for line in page.splitlines() if line.startswith("## ")]
        assert heads[0] == "## When to use which"
        for card in cards().values():
            if card.family == family:
                assert f"| [{card.slug}](#{card.slug}) |" in page
    for card in cards().values():
        for row in evidence(card.slug):
            assert row["verdict"] in build.VERDICTS


def test_the_evidence_page_has_published_and_measured_figures_interval_and_cost(build):
    page = build.evidence_page()
    for card in cards().values():
        line = next(x for x in page.splitlines() if f"#{card.slug})" in x)
        assert (build.inline(card.published) or "no figure") in line
        for row in [r for r in evidence(card.slug) if r["headline"]][:1]:
            assert build.difference(row) in line
            assert f"| {row['seeds']} |" in line
            assert f"{row['seconds']:,.0f} s" in line
            assert build.figure(row["ours_mean"]) in line
