"""Serving: the app, a real server, and the commands serve, keep and runs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

import etude
from etude import tasks
from etude.cli import cli
from etude.core import EtudeError
from etude.lab.artifact import Artifact, save_artifact
from etude.lab.ledger import Ledger
from etude.lab.row import Row, Run
from etude.lab.serve import LARGEST_BODY, MOST_ROWS, is_loopback, make_app, serve

CARD = {
    "title": "T", "arxiv": "2405.19504", "method": "heads.fake", "task": "probe",
    "metric": "accuracy", "value": 0.9, "difference": 0.1, "interval": [0.0, 0.2],
    "verdict": "better", "data": "toy", "data_hash": "ab",
}  # fmt: skip
COLUMNS = [
    {"name": "length", "kind": "number", "width": 1},
    {"name": "color", "kind": "category", "width": 2, "categories": ["red", "blue"]},
]
RUN = Run(
    id="3f2a9c0d1e2b", command="etude compare digits --methods " + "naive_bayes_probe," * 20,
    spec={"kind": "trial"}, started="2026-11-22T10:00:00+00:00",
)  # fmt: skip
ROW = Row(
    run=RUN.id, method="heads.fake", arm="ours", task="probe", data="toy", data_hash="ab",
    split="test", seed=0, metric="accuracy", value=0.9, unit="share", fit_s=0.1, infer_s=0.1,
    bytes=8, status="ok", params={}, setting="tuned", config_hash="c", version="0.1.0",
    machine="m", at="2026-11-22T10:00:01+00:00",
)  # fmt: skip
THREE = b'{"inputs": [[1, "red"], [1, "red"], [1, "red"]]}'


class Fake:
    """Class 1 where the length is positive; -1 is a fault of the method."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        if (x[:, 0] == -1).any():
            raise RuntimeError("a secret inside")
        return (x[:, 0] > 0).astype(np.int64)


def artifact() -> Artifact:
    schema = {"format": "table", "columns": COLUMNS, "target": "kind"}
    return Artifact(
        folder=Path("kept"), version="0.1.0", config={}, schema=schema, classes=("no", "yes"),
        card=CARD, predictor=Fake(),
    )  # fmt: skip


@pytest.fixture
def client():
    with TestClient(make_app(artifact()), raise_server_exceptions=False) as made:
        yield made


def refused(answer, status: int, said: str) -> None:
    """One shape for every error, and one line."""
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"].keys() == {"message", "status"}
    assert answer.json()["error"]["status"] == status
    assert re.search(said, answer.json()["error"]["message"])
    assert "\n" not in answer.json()["error"]["message"]


def test_rows_as_lists_and_as_objects(client) -> None:
    rows = [[2.5, "red"], [-3, "blue"], [1, "red"]]
    answer = client.post("/invocations", json={"inputs": rows})
    assert answer.status_code == 200
    assert answer.json() == {"predictions": ["yes", "no", "yes"]}
    named = [{"color": color, "length": length} for length, color in rows]
    assert client.post("/invocations", json={"inputs": named}).json() == answer.json()


def test_health_counts_the_rows_in(client) -> None:
    found = client.get("/health").json()
    assert found == {
        "status": "ok", "method": "heads.fake", "arxiv": "2405.19504", "task": "probe",
        "version": etude.__version__, "rows_in": 0,
    }  # fmt: skip
    client.post("/invocations", content=THREE)
    client.post("/invocations", json={"inputs": [[1, "green"]]})
    assert client.get("/health").json()["rows_in"] == 3


def test_about_says_what_it_reads(client) -> None:
    found = client.get("/").json()
    assert found["inputs"] == [
        {"name": "length", "kind": "number"},
        {"name": "color", "kind": "category", "categories": ["red", "blue"]},
    ]
    assert found["classes"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "must be JSON"),
        (b"{'inputs': 1}", 400, "must be JSON"),
        (b"\xff\xfe", 400, "must be JSON"),
        (b'{"inputs": [[NaN, "red"]]}', 400, "NaN is not a number of JSON"),
        (b"[" * 200_000, 400, "nested too deeply"),
        (b'{"inputs": [[' + b"9" * 5000 + b', "red"]]}', 400, "must be JSON"),
        (b'{"inputs": [[1, "red"]], "more": 1}', 422, "and nothing else"),
        (b'{"inputs": []}', 422, "at least one row"),
        (b'{"inputs": {"length": 1}}', 422, "at least one row"),
        (b'{"inputs": [1, 2]}', 422, "row 1 must be a list"),
        (b'{"inputs": [[1, "red"], [1]]}', 422, "row 2 must have 2 values"),
        (b'{"inputs": [[1, "green"]]}', 422, "row 1, column 'color' must be one of red, blue"),
        (b'{"inputs": [[1e999, "red"]]}', 422, "must be a finite"),
        (b'{"inputs": [[' + b"9" * 400 + b', "red"]]}', 422, "must be a finite"),
        (b'{"inputs": [[null, "red"]]}', 422, "must be a value"),
        (b'{"inputs": [[-1, "red"]]}', 500, "^the method failed on these inputs: RuntimeError$"),
    ],
)
def test_bad_bodies(client, body, status, said) -> None:
    refused(client.post("/invocations", content=body), status, said)
    assert client.get("/health").json()["rows_in"] == 0


def test_other_paths_and_verbs(client) -> None:
    refused(client.get("/docs"), 404, "/docs is not here")
    refused(client.get("/invocations"), 405, "/invocations does not take GET")
    refused(client.post("/health"), 405, "does not take POST")
    packed = client.post("/invocations", content=b"x", headers={"content-encoding": "gzip"})
    refused(packed, 400, "must not be compressed")


def test_too_much(client) -> None:
    rows = [[1, "red"]] * (MOST_ROWS + 1)
    refused(client.post("/invocations", json={"inputs": rows}), 413, "at most 10,000 rows")
    assert client.post("/invocations", json={"inputs": rows[1:]}).status_code == 200
    refused(client.post("/invocations", content=b" " * (LARGEST_BODY + 1)), 413, "at most 16,777,")
    assert client.post("/invocations", content=THREE.ljust(LARGEST_BODY)).status_code == 200


def test_a_body_without_a_length_is_limited_too(client) -> None:
    pieces = (b" " * (1 << 20) for _ in range(17))
    refused(client.post("/invocations", content=pieces), 413, "at most 16,777,216 bytes")


def test_requests_at_once_are_answered_one_by_one() -> None:
    busy, most = 0, 0

    class Slow:
        def predict(self, x: np.ndarray) -> np.ndarray:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            time.sleep(0.02)
            busy -= 1
            return np.zeros(len(x), dtype=np.int64)

    with (
        TestClient(make_app(replace(artifact(), predictor=Slow()))) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        list(pool.map(lambda _: client.post("/invocations", content=THREE), range(8)))
        assert client.get("/health").json()["rows_in"] == 24
    assert most == 1


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A real baseline, fitted and kept."""
    from etude.lab.data import load_dataset

    data, task = load_dataset("iris"), tasks.get_task("probe")
    arm = tasks.arm_of(task, "logistic_regression")
    fitted = task.fit(arm, data, task.split(data, 0), {"C": 1.0}, seed=0, budget_s=None)
    return save_artifact(
        tmp_path_factory.mktemp("kept") / "model", predictor=fitted, schema=data.schema,
        classes=data.classes, card=CARD, rows=[ROW], report_html="",
    )  # fmt: skip


def test_a_real_server_answers_until_it_is_interrupted(kept) -> None:
    import httpx2

    program = "from etude.cli import main; main()"
    command = [sys.executable, "-c", program, "serve", str(kept), "--port", "0"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line + server.stderr.read()
        rows = [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]]
        answer = httpx2.post(f"{address[0]}/invocations", json={"inputs": rows}, timeout=60)
        assert answer.json() == {"predictions": ["setosa", "virginica"]}
        assert httpx2.get(f"{address[0]}/health").json()["rows_in"] == 2
        refused(httpx2.get(f"{address[0]}/x"), 404, "/x is not here")
        server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=60)
        assert (server.returncode, out, errors) == (0, "", "")
    finally:
        server.kill()
        server.wait()


def test_a_port_that_is_taken_and_a_host_that_is_none(kept) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EtudeError, match=rf"port {port} cannot be served.*--port"):
            serve(kept, port=port)
    with pytest.raises(EtudeError, match="cannot be served"):
        serve(kept, host="no.such.host.invalid", port=0)


@pytest.mark.parametrize(("host", "alone"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_host_beyond_loopback_warns(kept, monkeypatch, host, alone) -> None:
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    result = CliRunner().invoke(cli, ["serve", str(kept), "--host", host, "--port", "0"])
    assert result.exit_code == 0, result.output
    assert ("lets other machines in" in result.stderr) is not alone
    assert f"heads.fake at http://{host}:" in result.stdout


def test_loopback() -> None:
    assert [is_loopback(h) for h in ("127.9.9.9", "::1", "localhost")] == [True] * 3
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "example.org", "10.0.0.1")))


def test_no_artifact(tmp_path) -> None:
    result = CliRunner().invoke(cli, ["serve", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "must be an artifact" in result.stderr


def test_keep_hands_its_words_on(monkeypatch) -> None:
    from etude.lab import run as running

    asked = []

    def keep(run: str, to: str, method: str | None = None, ledger: str | None = None) -> dict:
        asked.append((run, to, method, ledger))
        return {"method": "heads.fake", "folder": "/abs/my model"}

    monkeypatch.setattr(running, "keep", keep)
    words = ["keep", "latest", "--to", "my model", "--method", "fake", "--ledger", "l.sqlite"]
    result = CliRunner().invoke(cli, words)
    assert result.output == ("kept heads.fake in /abs/my model\nserve it: etude serve 'my model'\n")
    assert json.loads(CliRunner().invoke(cli, [*words, "--json"]).output) == keep("", "")
    assert asked[:2] == [("latest", "my model", "fake", "l.sqlite")] * 2
    assert CliRunner().invoke(cli, ["keep", "latest"]).exit_code == 2


def test_runs_lists_and_exports(tmp_path) -> None:
    url = str(tmp_path / "ledger.sqlite")
    words = ["runs", "--ledger", url]
    empty = CliRunner().invoke(cli, words)
    assert empty.exit_code == 1
    assert "no run yet" in empty.output
    book = Ledger(url)
    book.start(RUN)
    book.add([replace(ROW, seed=seed) for seed in range(1234)])
    book.finish(RUN.id, "finished")
    book.start(replace(RUN, id="4b", command="etude try [red]x\x1b[0m", spec={}))
    lines = CliRunner().invoke(cli, words).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    first, second = (next(i for i in lines if name in i) for name in ("4b", RUN.id))
    assert lines.index(first) < lines.index(second)
    assert "try [red]x?[0m" in first
    assert "running" in first
    assert re.search(r"2026-11-22 10:00 +compare digits --.*… +finished +1,234$", second.rstrip())
    found = json.loads(CliRunner().invoke(cli, [*words, "--json", "--limit", "1"]).stdout)
    assert [(run["id"], run["rows"]) for run in found["runs"]] == [("4b", 0)]
    path = tmp_path / "rows.csv"
    assert "1,234 rows" in CliRunner().invoke(cli, [*words, "--export", str(path)]).stdout
    assert len(path.read_text().splitlines()) == 1235
    bad = CliRunner().invoke(cli, [*words, "--export", "rows.xls"])
    assert bad.exit_code == 2
    assert "the export must be a file .csv" in bad.stderr
