"""``etude find``: the table, its JSON twin, exit statuses."""

import json

import pytest
from click.testing import CliRunner

from etude.cli.find import command
from etude.core import EtudeError
from etude.papers import evidence, papers

ROW = {
    "metric": "macro_f1", "data": "toy", "baseline_name": "b", "ours_mean": 0.9,
    "baseline_mean": 0.8, "verdict": "does not hold at this scale", "headline": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def measured(tmp_path, monkeypatch) -> None:
    (tmp_path / "graphs.fast_rp.jsonl").write_text(json.dumps(ROW))
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)


def run(*words: str):
    return CliRunner().invoke(command, words, catch_exceptions=False)


def test_table_fits_80_columns_and_marks_what_runs() -> None:
    result = run("node embeddings of large graphs without training", "-k", "5")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    line = next(i for i, text in enumerate(result.stdout.splitlines()) if "fast_rp" in text)
    both = "\n".join(result.stdout.splitlines()[line - 1 : line + 1])
    assert "fast_rp" in both
    assert "graphs" in both
    assert "yes" in both
    assert "does not hold" in both


def test_longest_names_are_whole() -> None:
    longest = max(papers(), key=lambda paper: len(paper.slug))
    result = run(longest.title, "-k", "1")
    assert longest.slug in result.stdout.split("etude info")[0]
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_bytes_that_are_not_utf8_do_no_harm() -> None:
    result = run("noisy \udcff labels", "--json")
    assert json.loads(result.stdout)["query"] == "noisy ? labels"


def test_json_has_everything() -> None:
    result = run("node", "embeddings", "of", "large", "graphs", "-k", "5", "--json")
    answer = json.loads(result.stdout)
    assert answer["query"] == "node embeddings of large graphs"
    assert [row["rank"] for row in answer["papers"]] == [1, 2, 3, 4, 5]
    row = next(row for row in answer["papers"] if row["slug"] == "fast_rp")
    assert row["runnable"] is True
    assert row["measured"] == ROW
    assert row["verdict"] == "does not hold at this scale"
    assert (row["year"], row["arxiv"], row["family"]) == (2019, "1908.11512", "graphs")


def test_runnable_only() -> None:
    answer = json.loads(run("graphs", "--runnable", "--json", "-k", "30").stdout)
    assert answer["papers"]
    assert all(row["runnable"] for row in answer["papers"])


def test_nothing_found_is_the_answer_no(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "etude.nets.minilm", None)
    result = run("xyzzy")
    assert result.exit_code == 1
    assert "nothing found" in result.stdout
    assert 'pip install "etude[text]"' in result.stderr
    assert json.loads(run("xyzzy", "--json").stdout)["papers"] == []


def test_empty_query_is_bad_input() -> None:
    with pytest.raises(EtudeError, match="query must be"):
        run("")
    assert CliRunner().invoke(command, []).exit_code == 2


def test_help_has_an_example() -> None:
    assert "etude find" in run("--help").output
