"""The examples of README, CONTRIBUTING and docs/, run; and the links between the pages.

In a ``python`` block the comment behind a ``print(...)`` is what it must print. A ``console``
block runs each line that starts with ``$ etude`` and must show the lines below it, where ``...``
stands for anything; ``# exit status 1`` behind a command is its status. A block after the
comment ``<!-- not run: reason -->`` is left out.
"""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from etude.cli import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|file): (?P<what>.*?) -->\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.M | re.S,
)
RUN = {"python", "console"}


def blocks():
    """Every block that is to be run, with its page and line as its name."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match["kind"] in RUN and match["mark"] is None:
                line = text[: match.start("text")].count("\n") + 1
                name = f"{page.relative_to(ROOT)}:{line}"
                yield pytest.param(match["kind"], match["text"], id=name)


def files():
    """The blocks of CONTRIBUTING that are whole files, by their path."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return {m["what"]: m["text"] for m in BLOCK.finditer(text) if m["mark"] == "file"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of its own with a small table, as the pages assume it."""
    from sklearn.datasets import load_iris

    monkeypatch.chdir(tmp_path)
    iris = load_iris()
    lines = ["length,width,petal_length,petal_width,species"]
    for row, label in zip(iris.data.tolist(), iris.target.tolist(), strict=True):
        lines.append(",".join([*map(str, row), str(iris.target_names[label])]))
    (tmp_path / "flowers.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize(("kind", "text"), list(blocks()))
def test_example(kind, text, here, capsys):
    if kind == "python":
        (here / "example.py").write_text(text)
        runpy.run_path(str(here / "example.py"), run_name="__main__")
        wanted = re.findall(r"^ *print\(.*\)  # (.*)$", text, re.M)
        shown = capsys.readouterr().out.splitlines()
        assert [line for line in wanted if line not in shown] == []
        return
    for command, wanted in commands(text):
        words, _, note = command.partition("  # ")
        result = CliRunner().invoke(cli, shlex.split(words)[1:], prog_name="etude")
        status = int(note.removeprefix("exit status ")) if note else 0
        assert result.exit_code == status, (words, result.output, result.exception)
        parts = [re.escape(" ".join(part.split())) for part in wanted.split("...")]
        shown = " ".join(result.output.split())
        assert re.search(r".*?".join(parts), shown), (words, shown)


def commands(text):
    """(command, the lines below it) for every line that starts with ``$ etude``."""
    pieces = re.split(r"^\$ ", text, flags=re.M)[1:]
    assert all(piece.startswith("etude") for piece in pieces), "only etude is run; mark the block"
    return [piece.partition("\n")[::2] for piece in pieces]


def test_there_are_examples_of_both_kinds():
    kinds = [param.values[0] for param in blocks()]
    assert kinds.count("python") >= 3
    assert kinds.count("console") >= 5


def test_the_worked_example_of_contributing_keeps_the_rules(tmp_path, monkeypatch):
    from etude.core import check_names
    from etude.core.index import read_card
    from etude.tasks.base import METRICS

    written = {}
    for name, text in files().items():
        written[name] = tmp_path / name
        written[name].parent.mkdir(parents=True)
        written[name].write_text(text)
    method, experiment, test = (
        next(path for name, path in written.items() if name.startswith(start))
        for start in ("src/etude/losses", "src/etude/experiments", "tests/losses")
    )
    card = read_card(method)
    assert (card.family, card.slug) == ("losses", method.stem)
    module = load(card.module, method, monkeypatch)
    name = module.__all__[0]
    loss = vars(module)[name]
    monkeypatch.setattr(sys.modules["etude.losses"], name, loss, raising=False)
    check_names(loss)
    check_names(loss.forward)
    checks = runpy.run_path(str(test))
    found = [check for name, check in checks.items() if name.startswith("test_")]
    assert len(found) >= 5
    for check in found:
        check()
    pairs = load("example_experiment", experiment, monkeypatch).measure(0)
    assert (pairs[0].metric, pairs[0].baseline_name) == (card.metric, card.baseline)
    assert METRICS[card.metric].better == card.better
    assert 0.5 < pairs[0].baseline < 1


def load(name, path, monkeypatch):
    """The file as the module `name`."""
    import etude.losses  # noqa: F401

    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def anchors(text):
    """The anchors that GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target
