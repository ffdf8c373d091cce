"""The report: complete, self-contained, escaped, readable in both themes, written whole."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

from etude.cli import cli
from etude.core import EtudeError
from etude.lab import judge
from etude.lab import report as module
from etude.lab.board import Board, Entry
from etude.lab.ledger import Ledger
from etude.lab.plan import Plan
from etude.lab.plots import cost_svg, difference_svg
from etude.lab.report import COLORS, report_html, write_report
from etude.lab.row import Row, Run
from etude.lab.table import board_json

SEEDS = (0, 1, 2, 3, 4)
BASE = np.array([0.9611, 0.9583, 0.9694, 0.9639, 0.9667])
VOID = {"meta", "br", "wbr"}
# A method's name, mean gain, spread, seconds to fit, bytes.
LINES = (
    ("heads.moment_probing", 0.018, 0.002, 1.9, 161_000),
    ("heads.equiangular_basis_vectors", 0.004, 0.012, 0.8, 25_600),
    ("heads.naive_bayes_probe", -0.052, 0.004, 0.004, 10_300),
    ("heads.logistic_twin", 0.0001, 0.0003, 0.31, 2600),
)


def make_board(better="higher", **facts):
    """Five seeds of four methods, one of which failed once, against logistic regression."""
    generator, entries = np.random.default_rng(0), []
    spec = {"seeds": 5, "tune": 4, "budget_s": 60, "overlap": 1 / 3}
    run = Run(id="3f2a9c0d11e7", command="etude compare digits", spec=spec, started="2025-05-01",
              finished="2025-05-01T00:02", state="finished")  # fmt: skip
    for method, gain, spread, fit_s, n_bytes in LINES:
        ours = BASE + gain + generator.normal(0, spread, 5)
        verdict = judge(ours, BASE, better=better, margin=0.005, overlap=1 / 3)
        first = judge(ours - 0.01, BASE, better=better, margin=0.005, overlap=1 / 3)
        entries.append(Entry(
            method=method, title=f"On {method}", arm="ours", value=float(ours.mean()),
            default_value=float(ours.mean()) - 0.01, verdict=verdict, default_verdict=first,
            fit_s=fit_s, infer_s=0.002, bytes=n_bytes,
            failures=("seed 7: singular matrix",) if "bayes" in method else (),
            values=dict(zip(SEEDS, ours.tolist(), strict=True)),
            differences=dict(zip(SEEDS, (ours - BASE).tolist(), strict=True)),
            params={"n_steps": 300},
        ))  # fmt: skip
    entries.insert(2, Entry(
        method="logistic_regression", title="logistic regression", arm="baseline",
        value=float(BASE.mean()), default_value=float(BASE.mean()), verdict=None,
        default_verdict=None, fit_s=0.32, infer_s=0.001, bytes=2600, failures=(),
        values=dict(zip(SEEDS, BASE.tolist(), strict=True)),
    ))  # fmt: skip
    given = {
        "run": run, "task": "probe", "data": "digits", "n_rows": 1797, "metric": "accuracy",
        "unit": "share", "better": better, "margin": 0.005, "baseline": "logistic_regression",
        "seeds": SEEDS, "entries": tuple(entries), "winner": "heads.moment_probing",
        "skipped": {"heads.other": "asks for tokens; this data has none"},
    }  # fmt: skip
    return Board(**given | facts)


def make_row(**facts):
    given = {
        "run": "3f2a9c0d11e7", "method": "heads.moment_probing", "arm": "ours", "task": "probe",
        "data": "digits", "data_hash": "c0ffee", "split": "test", "seed": 0,
        "metric": "accuracy", "value": 0.98, "unit": "share", "fit_s": 0.1, "infer_s": 0.1,
        "bytes": 10, "status": "ok", "params": {}, "setting": "default", "config_hash": "x",
        "version": "0.1.0", "machine": "x86_64, 2 cores", "at": "2025-05-01T00:00:00",
    }  # fmt: skip
    return Row(**given | facts)


ROWS = [make_row(), make_row(value=None, status="failed: singular matrix")]


class Page(HTMLParser):
    """Checks that tags nest, and keeps tags, ids and the text outside of style."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.ids, self.words = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_page_is_well_formed_and_says_everything():
    board = make_board()
    page = Page(report_html(board, ROWS))
    names = [tag for tag, _ in page.tags]
    for tag in ("header", "main", "h1", "h2", "figure", "caption"):
        assert tag in names
    assert names.count("svg") == 2
    assert len(page.ids) == len(set(page.ids))
    text = page.text.replace("_ ", "_")
    for words in (
        "moment_probing is better than logistic_regression on digits: accuracy +0.0",
        "✓ better", "? undecided", "✗ worse", "= tie", "accuracy ↑", "seed 4", "n_steps=300",
        "4 configurations an arm", "60 s a fit", "±0.005 share", "Holm", "n_test/n_train (0.333)",
        "etude keep 3f2a9c0d11e7 --to moment-probing", "etude serve moment-probing",
        "etude compare digits", "0.1.0", "x86_64, 2 cores", "c0ffee",
        "2 rows in the ledger, 1 of them failures", "asks for tokens; this data has none",
        "1 failure(s), the first: seed 7: singular matrix", "161 kB", "1,797 rows",
    ):  # fmt: skip
        assert words in text, words
    for entry in board.entries:
        for value in entry.values.values():
            assert f"{value:.4f}" in text
        if entry.verdict:
            low = f"{entry.verdict.low:+.4f}".replace("-", "−")
            assert low in text


def test_nothing_is_loaded_from_elsewhere_and_no_script_runs():
    html = report_html(make_board(), ROWS)
    page = Page(html)
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "base", "form")
        assert not any(name.startswith("on") or name == "src" for name in attributes)
        for name, value in attributes.items():
            if "://" in (value or "") and not name.startswith("xmlns"):
                assert (tag, name) == ("a", "href")
                assert value.startswith("https://arxiv.org/abs/")
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


EVIL = "\"><script>alert(1)</script><img src=x onerror=y> '&amp; $x^2$ \x1b[2J\u202e\n"


def test_hostile_names_stay_text():
    board = make_board(data=EVIL, skipped={EVIL: EVIL})
    entry = board.entries[0]
    evil = {**vars(entry), "title": EVIL, "method": f"heads.{EVIL}", "failures": (EVIL,),
            "params": {EVIL: EVIL}}  # fmt: skip
    board = make_board(
        data=EVIL, task=EVIL, entries=(Entry(**evil), *board.entries[1:]),
        winner=f"heads.{EVIL}",
        run=Run(id=EVIL, command=EVIL, spec={"tune": EVIL}, started=EVIL),
    )  # fmt: skip
    html = report_html(board, [make_row(version=EVIL, machine=EVIL, data_hash=EVIL)])
    page = Page(html)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not any(n.startswith("on") for _, attributes in page.tags for n in attributes)
    assert "\x1b" not in html
    assert "\u202e" not in html  # a sign that turns the reading direction around
    assert page.text.count("<script>alert(1)</script>") > 10


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("color", ["ink", "soft", "better", "worse", "tie", "undecided", "link"])
def test_contrast_of_text_is_at_least_4_5(theme, color):
    def luminance(code):
        parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    lights = sorted(luminance(COLORS[name][theme]) for name in (color, "bg"))
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5


def test_every_color_of_the_plots_is_a_variable_of_both_themes():
    html = report_html(make_board(), ROWS)
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.S))
    used = set(re.findall(r"var\(--(\w+)\)", drawings))
    assert {"ink", "soft", "band", "better", "worse", "tie", "undecided"} <= used <= set(COLORS)
    assert not re.search(r"(fill|stroke): #", drawings)
    assert "@media (prefers-color-scheme:dark)" in html
    assert "width=device-width" in html


@pytest.mark.parametrize("draw", [difference_svg, cost_svg])
def test_a_plot_describes_itself_and_is_the_same_every_time(draw):
    board = make_board()
    drawing = draw(board)
    root = ElementTree.fromstring(
        drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    )
    assert root.get("role") == "img"
    assert "moment_probing" in root.get("aria-label")
    assert drawing == draw(board)
    assert re.sub("differences|cost", "other", drawing) != drawing


def marks(board, status):
    """x positions of the marker drawn for `status`, in the units of the drawing."""
    drawing = difference_svg(board)
    uses = re.findall(r'<use [^>]*x="([\d.]+)"[^>]*style="fill: var\(--(\w+)\)', drawing)
    return [float(x) for x, name in uses if name == status]


def test_better_stands_to_the_right_of_worse_and_lower_better_turns_the_names_around():
    assert max(marks(make_board(), "better")) > max(marks(make_board(), "worse"))
    assert max(marks(make_board("lower"), "better")) < max(marks(make_board("lower"), "worse"))
    assert "← lower is better" in difference_svg(make_board("lower"))
    assert "higher is better →" in difference_svg(make_board())


def test_one_seed_and_no_result_at_all_are_drawn_or_left_out():
    entry = make_board().entries[0]
    one = Entry(**{**vars(entry), "verdict": judge([0.97], [0.96]), "values": {0: 0.97}})
    page = Page(report_html(make_board(entries=(one,), seeds=(0,)), ROWS))
    assert "−∞ to +∞" in page.text
    gone = Entry(**{**vars(entry), "verdict": None, "value": None, "default_value": None,
                    "values": {}, "differences": {}})  # fmt: skip
    html = report_html(make_board(entries=(gone,)), [])
    assert "<svg" not in html
    assert "! failed" in Page(html).text


def test_written_files_are_whole_and_agree(tmp_path):
    board = make_board()
    path = write_report(board, ROWS, tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b" / "report.html"
    assert path.read_text(encoding="utf-8") == report_html(board, ROWS)
    twin = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    assert {**twin, "rows": None} == {**board_json(board), "rows": None}
    assert [row["status"] for row in twin["rows"]] == [row.status for row in ROWS]
    assert unescape(twin["headline"]) in unescape(path.read_text(encoding="utf-8"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["report.html", "report.json"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_breaks_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(make_board(), ROWS, tmp_path)
    before = path.read_text(encoding="utf-8")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(EtudeError, match=r"report folder .* cannot be written: No space left"):
        write_report(make_board(data="wine"), ROWS, tmp_path)
    assert path.read_text(encoding="utf-8") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_the_command_makes_the_page_again_from_the_ledger(tmp_path):
    url = str(tmp_path / "ledger.sqlite")
    plan = Plan(
        task="probe", source="digits", data="digits", data_hash="c0ffee", reading={}, n_rows=1797,
        overlap=1 / 3, methods=("heads.naive_bayes_probe",), baseline="logistic_regression",
        metric="accuracy", better="higher", margin=None, seeds=2, tune=1, budget_s=None,
    )  # fmt: skip
    ledger = Ledger(url)
    ledger.start(Run(id=plan.id, command="etude x", spec=plan.spec(), started="2025"))
    ledger.add(
        make_row(run=plan.id, method=name, seed=seed, value=value + 0.001 * seed, arm=arm)
        for name, arm, value in (
            ("heads.naive_bayes_probe", "ours", 0.92), ("logistic_regression", "baseline", 0.97),
        )
        for seed in (0, 1)
    )  # fmt: skip
    words = ["report", plan.id[:6], "--ledger", url, "--to", str(tmp_path / "out")]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 0, shown.output
    assert "✗ worse" in shown.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "naive_bayes_probe is worse than logistic_regression on digits" in page
    twin = json.loads(CliRunner().invoke(cli, [*words, "--json"]).output)
    assert twin["run"]["id"] == plan.id
    assert twin["entries"][1]["verdict"]["difference"] == pytest.approx(-0.05)


def test_the_command_names_an_unknown_run(tmp_path):
    shown = CliRunner().invoke(cli, ["report", "abc", "--ledger", str(tmp_path / "l.sqlite")])
    assert shown.exit_code == 2
    assert "no run is called 'abc'" in shown.output
    assert "Traceback" not in shown.output
