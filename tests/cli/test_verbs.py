"""The verbs from outside: the main job, JSON twins, exit statuses, and what bad input gets."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from etude.cli import VERBS, cli

WINE = ["compare", "wine", "--methods", "naive_bayes_probe", "--seeds", "2", "--tune", "2"]


def run(*arguments, status=0):
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == status, result.output + result.stderr
    return result


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_main_job_from_comparison_to_answer(tmp_path):
    shown = run(*WINE)
    assert "naive_bayes_probe" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80 or str(tmp_path) in shown.stdout
    keep = next(line for line in shown.stdout.splitlines() if line.startswith("keep"))
    assert (tmp_path / "etude-report" / "report.html").stat().st_size > 10_000
    run(*keep.split()[2:])

    import etude
    from etude.lab.data import load_dataset

    wine = load_dataset("wine")
    artifact = etude.load("winner")
    answers = artifact.predict(wine.x.tolist())
    assert np.mean([wine.classes.index(a) == y for a, y in zip(answers, wine.y, strict=True)]) > 0.9
    sums = (tmp_path / "winner" / "SHA256SUMS").read_text()
    for name in ("model.safetensors", "config.json", "card.md", "report.json", "report.html"):
        assert name in sums
    assert not list((tmp_path / "winner").glob("*.pkl"))


def test_json_twins(tmp_path):
    board = json.loads(run(*WINE, "--json").stdout)
    assert board["winner"]
    assert json.loads(run("runs", "--json").stdout)
    assert json.loads(run("report", "latest", "--json").stdout)["winner"] == board["winner"]
    kept = json.loads(run("keep", "latest", "--to", "w", "--json").stdout)
    assert kept["method"] == board["winner"]
    assert json.loads(run("data", "ls", "--json").stdout)
    assert json.loads(run("data", "info", "wine", "--json").stdout)
    assert json.loads(run("find", "noisy labels", "--json").stdout)["papers"]
    assert json.loads(run("info", "naive_bayes_probe", "--json").stdout)


def test_try_says_no_by_its_exit_status():
    # Whatever the verdict is, the status must follow it.
    result = CliRunner().invoke(
        cli,
        ["try", "naive_bayes_probe", "--data", "wine", "--seeds", "3", "--tune", "1",
         "--metric", "log_loss", "--margin", "0", "--json"],
    )  # fmt: skip
    board = json.loads(result.stdout)
    ours = next(e for e in board["entries"] if e["arm"] == "ours")
    assert result.exit_code == (1 if ours["verdict"]["label"] == "worse" else 0)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb):
    text = run(verb, "--help").output
    assert "Example" in text
    assert f"etude {verb}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_help_is_quick():
    def seconds():
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "etude", "--help"], check=True, capture_output=True)
        return time.perf_counter() - started

    def bare():
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import click"], check=True, capture_output=True)
        return time.perf_counter() - started

    # On a busy machine the bare interpreter is slow too: what counts is what etude adds.
    assert min(seconds() for _ in range(5)) < max(0.3, 2.5 * min(bare() for _ in range(5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "no such paper at all"], "nearest"),
        (["try", "nothing", "--data", "wine"], "no method is called 'nothing'"),
        (["try", "naive_bayes_probe", "--data", "absent.csv"], "absent.csv"),
        (["compare", "wine", "--budget", "soon"], "--budget must be a time such as 60s"),
        (["compare", "wine", "--as", "proline"], "--as must be COLUMN=KIND"),
        (["compare", "wine", "--seeds", "0"], "seeds must be from 1"),
        (["compare", "wine", "--target", "vintage"], "target"),
        (["verify"], "name one of"),
        (["verify", "--family", "cooking"], "no method of family 'cooking'"),
        (["keep", "beef", "--to", "x"], "beef"),
        (["report", "beef"], "beef"),
        (["serve", "nowhere"], "nowhere must be an artifact"),
        (["data", "info", "nowhere.parquet"], "nowhere.parquet"),
        (["compare", "wine", "--ledger", "mysql://u:secret@h/d"], "mysql"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    result = run(*arguments, status=2)
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "secret" not in result.stderr
    assert result.stdout == ""


def test_an_unknown_verb_is_status_2():
    process = subprocess.run(
        [sys.executable, "-m", "etude", "dance"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "No such command 'dance'" in process.stderr
