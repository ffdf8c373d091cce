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
