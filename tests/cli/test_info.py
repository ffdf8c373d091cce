"""``etude info``: a paper that runs, one that does not yet, and names."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from etude.cli.info import command
from etude.core import EtudeError, card_of
from etude.papers import about, catalogue, evidence

ROW = {
    "method": "graphs.fast_rp", "metric": "macro_f1", "better": "higher", "data": "toy",
    "setting": "dim=8", "baseline_name": "spectral_embedding", "ours_mean": 0.9123,
    "baseline_mean": 0.8, "difference": 0.1123, "low": 0.05, "high": 0.15, "label": "better",
    "verdict": "holds", "seeds": [0, 1, 2, 3, 4], "headline": True, "at": "2026-01-01",
}  # fmt: skip


@pytest.fixture(autouse=True)
def measured(tmp_path, monkeypatch) -> None:
    (tmp_path / "graphs.fast_rp.jsonl").write_text(json.dumps(ROW))
    monkeypatch.setattr(evidence, "folder", lambda: tmp_path)


def run(*words: str):
    return CliRunner().invoke(command, words, catch_exceptions=False)


def test_runnable_paper_shows_published_beside_measured() -> None:
    result = run("fast_rp")
    text = " ".join(result.stdout.split())
    card = card_of("fast_rp")
    assert result.exit_code == 0
    assert card.title in text
    assert "2019 https://arxiv.org/abs/1908.11512" in text
    assert catalogue.paper_of("fast_rp").move in text
    assert "fast_rp(adjacency" in text
    assert card.published in text
    assert "0.9123" in text
    assert "+0.112" in text
    assert "[+0.05, +0.15]" in text
    assert "holds" in text
    assert "over 5 paired seeds" in text
    assert "etude verify fast_rp" in text
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_json_has_everything() -> None:
    facts = json.loads(run("arXiv:1908.11512v1", "--json").stdout)
    card = card_of("fast_rp")
    assert facts["measured"] == [ROW]
    assert facts["verdict"] == "holds"
    assert facts["claim"] == card.claim
    assert facts["departs"] == list(card.departs)
    assert facts["signature"][0].startswith("fast_rp(")
    assert facts["import"] == "from etude.graphs import fast_rp"
    assert len(facts["similar"]) == 3


def test_paper_that_does_not_run_gives_the_facts(monkeypatch) -> None:
    monkeypatch.setattr(about, "card_for", lambda _: None)
    result = run("soft_nms")
    assert result.exit_code == 0
    assert "not yet runnable here" in result.stdout
    assert "Soft-NMS" in result.stdout
    assert "https://arxiv.org/abs/1704.04503" in result.stdout
    assert "etude try" not in result.stdout
    facts = json.loads(run("soft_nms", "--json").stdout)
    assert facts["runnable"] is False
    assert "signature" not in facts


def test_trial_command_follows_the_task(monkeypatch) -> None:
    card = card_of("fast_rp")
    trial = replace(card, task="probe", data=("wine",))
    monkeypatch.setattr(about, "card_for", lambda paper: trial if paper.slug == "fast_rp" else None)
    commands = json.loads(run("fast_rp", "--json").stdout)["commands"]
    assert commands == ["etude try fast_rp --data wine", "etude verify fast_rp"]
    experiment = replace(card, task="experiment")
    monkeypatch.setattr(about, "card_for", lambda _: experiment)
    assert json.loads(run("fast_rp", "--json").stdout)["commands"] == ["etude verify fast_rp"]


def test_title_of_several_words() -> None:
    title = "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings"
    assert json.loads(run(*title.split(), "--json").stdout)["slug"] == "muvera"


def test_unknown_name_gets_the_nearest_three() -> None:
    with pytest.raises(EtudeError, match="the nearest are muvera, "):
        run("muverra")


def test_paper_without_id_says_so() -> None:
    assert "no arXiv id known" in run("uhd_reflection").stdout


def test_help_has_an_example() -> None:
    assert "etude info" in run("--help").output
