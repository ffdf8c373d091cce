"""The report of a run: one HTML file that needs nothing else, and the same facts as JSON.

No script, no font, no image from elsewhere: a policy in the page forbids them. Everything that
came from outside (names, titles, messages) is escaped; colors are variables of a light and a
dark theme, and only repeat what a symbol and a word say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from etude.core import EtudeError
from etude.lab import table
from etude.lab.board import Board, Entry
from etude.lab.plots import cost_svg, difference_svg
from etude.lab.row import Row
from etude.lab.table import interval_level, name_of, printable, scale_of, seconds, size, status_of

__all__ = ["COLORS", "report_html", "write_report"]

# name: (light, dark); each of the text colors has a contrast of at least 4.5 on `bg`.
COLORS = {
    "bg": ("#ffffff", "#14171c"),
    "ink": ("#1d2129", "#e8eaee"),
    "soft": ("#5b6270", "#a4acb9"),
    "line": ("#d5d9e0", "#3a404b"),
    "band": ("#9cc3ee", "#35608f"),
    "better": ("#11713a", "#5fd38d"),
    "worse": ("#b3261e", "#ff9088"),
    "tie": ("#1f5fae", "#86b7f7"),
    "undecided": ("#7d5300", "#e8b64c"),
    "link": ("#0b57b0", "#8ab8ff"),
}
STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1.25rem;background:var(--bg);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word}
h1{font-size:1.45rem;line-height:1.3;margin:.2rem 0 .6rem}
h2{font-size:1.15rem;margin:2rem 0 .5rem;padding-top:.6rem;border-top:1px solid var(--line)}
p,ul,dl{margin:.5rem 0;max-width:46rem}
.soft,figcaption,caption{color:var(--soft)} a{color:var(--link)}
.scroll{overflow-x:auto} .scroll:focus-visible,a:focus-visible{outline:2px solid var(--link)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0 .4rem}
caption span{display:block;max-width:calc(100vw - 2.6rem)}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--line);
vertical-align:top;white-space:nowrap}
th:first-child{text-align:left;padding-left:0;white-space:normal;min-width:7.5rem}
th.word,td.word{text-align:left} thead th{color:var(--soft);font-weight:600}
tbody th{font-weight:500} tr.winner th{font-weight:700}
small{color:var(--soft);font:400 .86em system-ui,sans-serif}
.better{color:var(--better)}.worse,.failed{color:var(--worse)}.tie{color:var(--tie)}
.undecided{color:var(--undecided)} td.better,td.worse{font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));
gap:1.5rem;align-items:start} figure{margin:0} svg{width:100%;height:auto;max-width:36rem}
svg *{stroke-linejoin:round} svg text{font-family:system-ui,sans-serif!important;
paint-order:stroke;stroke:var(--bg);stroke-width:3px}
pre{overflow-x:auto;padding:.7rem .9rem;border:1px solid var(--line);border-radius:6px}
dl{display:grid;grid-template-columns:minmax(6.5rem,max-content) 1fr;gap:.2rem 1rem}
dt{color:var(--soft)} dd{margin:0;min-width:0} code,pre{font-family:ui-monospace,monospace}
@media (max-width:40rem){th,td{padding:.35rem .4rem;font-size:.93rem}
th:first-child{max-width:8.5rem} td.word{white-space:normal;min-width:5.9rem}
h1{font-size:1.25rem} ul{padding-left:1.3rem}}
"""
MINUS = str.maketrans({"-": "−"})  # of numbers only


def _theme(index: int) -> str:
    return ";".join(f"--{name}:{pair[index]}" for name, pair in COLORS.items())


def _text(value: object) -> str:
    """`value` as text of a page: on one line, without control characters, escaped."""
    return escape(printable(str(value), 2000))


def _number(text: str) -> str:
    return escape(text.translate(MINUS))


def _two(number: str, below: str) -> str:
    return f"{_number(number)}<br><small>{_number(below)}</small>"


def _table(heads: Sequence[str], rows: Iterable[str], caption: str, words: Sequence[int]) -> str:
    """A table that scrolls by itself on a narrow screen; columns in `words` hold words."""
    head = "".join(
        f'<th scope="col"{" class=word" if i in words else ""}>{text}</th>'
        for i, text in enumerate(heads)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(name: str, cells: Iterable[str], mark: str = "") -> str:
    kind = f' class="{mark}"' if mark else ""
    return f'<tr{kind}><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _cell(html: str, kind: str = "") -> str:
    return f'<td class="{kind}">{html}</td>' if kind else f"<td>{html}</td>"


def _verdict(status: str) -> str:
    return f"{table.SYMBOLS[status]}&nbsp;{status}" if status in table.SYMBOLS else status


def _leaderboard(board: Board) -> str:
    scale, level = scale_of(board), interval_level(board)
    unit = f" {escape(scale.unit)}" if scale.unit else ""
    heads = ["method", "verdict", f"{_text(board.metric)} {table.ARROWS[board.better]}{unit}",
             f"difference<br><small>{level} interval</small>", "fit<br><small>predict</small>",
             "bytes"]  # fmt: skip
    rows = []
    for entry in board.entries:
        status, verdict = status_of(entry, board), entry.verdict
        between, said = "", _verdict(status)
        if verdict:
            between = _two(scale.difference(verdict.difference), scale.interval(verdict))
            said += f"<br><small>ahead on {verdict.p_superior:.0%} of seeds</small>"
        costs = [_two(seconds(entry.fit_s), seconds(entry.infer_s)), size(entry.bytes)]
        cells = [_cell(said, f"word {status}"), _cell(_number(scale.value(entry.value))),
                 _cell(between), *(_cell("" if entry.value is None else cost) for cost in costs),
                 ]  # fmt: skip
        mark = "winner" if entry.method == board.winner else ""
        rows.append(_row(_method(entry), cells, mark))
    return _table(heads, rows, "Leaderboard, best first", (1,))


def _method(entry: Entry) -> str:
    """The name, with breaks where it may wrap, and the paper's page where a card knows it."""
    from etude.core import cards

    name = _text(name_of(entry.method)).replace("_", "_<wbr>")
    card = cards().get(entry.method)
    title = f"<br><small>{_text(entry.title)}</small>" if entry.title != entry.method else ""
    if card is None or not card.arxiv:
        return name + title
    return f'<a href="https://arxiv.org/abs/{escape(card.arxiv)}">{name}</a>{title}'


def _plots(board: Board) -> str:
    drawn = [
        (difference_svg(board), "Difference to the baseline with its interval."),
        (cost_svg(board), "Quality against cost. The star and the dashed line: the baseline."),
    ]
    figures = [f"<figure>{svg}<figcaption>{s}</figcaption></figure>" for svg, s in drawn if svg]
    return f'<h2>Plots</h2><div class="plots">{"".join(figures)}</div>' if figures else ""


def _per_seed(board: Board) -> str:
    scale = scale_of(board)
    rows = []
    for entry in board.entries:
        cells = []
        for seed in board.seeds:
            gap = entry.differences.get(seed)
            value = scale.value(entry.values.get(seed))
            cells.append(
                _cell(_number(value) if gap is None else _two(value, scale.difference(gap)))
            )
        rows.append(_row(_text(name_of(entry.method)).replace("_", "_<wbr>"), cells))
    caption = f"{_text(board.metric)} on the test part; below it the difference to the baseline"
    return _table(["method", *(f"seed {s}" for s in board.seeds)], rows, caption, ())


def _tuning(board: Board) -> str:
    scale = scale_of(board)
    tuned = [e for e in board.entries if e.default_value is not None and e.value is not None]
    rows = []
    for entry in tuned:
        verdict = entry.default_verdict
        said = _verdict(verdict.label) if verdict else ""
        chosen = ", ".join(f"{_text(k)}={_text(v)}" for k, v in entry.params.items()) or "–"
        cells = [_cell(_number(scale.value(entry.default_value))), _cell(said, "word"),
                 _cell(_number(scale.value(entry.value))),
                 _cell(_verdict(status_of(entry, board)), "word"),
                 _cell(f"<code>{chosen}</code>", "word")]  # fmt: skip
        rows.append(_row(_text(name_of(entry.method)).replace("_", "_<wbr>"), cells))
    heads = ["method", "default", "verdict", "tuned", "verdict", "chosen settings"]
    same = all(entry.default_value == entry.value for entry in tuned)
    note = "<p>Nothing was tuned: both columns are the defaults.</p>" if same else ""
    return note + _table(
        heads, rows, "Default and tuned settings, both on the test part", (2, 4, 5)
    )


def _facts(pairs: Iterable[tuple[str, object]]) -> str:
    lines = (f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in pairs if v not in (None, ""))
    return f"<dl>{''.join(lines)}</dl>"


def _compared(board: Board, spec: Mapping[str, Any]) -> str:
    tune, budget, level = spec.get("tune"), spec.get("budget_s"), interval_level(board)
    several = len([e for e in board.entries if e.method != board.baseline]) > 1
    holm = ", each level set by Holm for all methods together" if several else ""
    tuned, overlap = isinstance(tune, int) and tune > 1, spec.get("overlap")
    ratio = f" ({overlap:.3g})" if isinstance(overlap, float) else ""
    ends = f"Student's t, {level or 'levels in the notes'}{holm}"
    return _facts([
        ("data", f"{board.data}, {board.n_rows:,} rows"),
        ("task", board.task),
        ("splits", "train, validation and test, drawn once a seed; every arm sees the same ones"),
        ("seeds", f"{len(board.seeds)}: {', '.join(map(str, board.seeds))}"),
        ("tuning", f"{tune} configurations an arm, chosen on the validation part; the test part "
         "was opened once" if tuned else "none: the default settings of every arm"),
        ("budget", f"{budget} s a fit" if budget else "the same steps for every arm"),
        ("metric", f"{board.metric}, {board.better} is better"),
        ("equal in practice", f"within ±{board.margin:.4g} {board.unit}"),
        ("interval", f"{ends}; on the differences paired by seed; where training parts overlap, "
         f"the variance has the Nadeau-Bengio term n_test/n_train{ratio}"),
        ("verdict", "better or worse where the interval lies outside the region of practical "
         "equivalence, tie where it lies inside, otherwise undecided"),
    ])  # fmt: skip


def _environment(board: Board, rows: Sequence[Row]) -> str:
    kinds = {n: sorted({str(getattr(row, n)) for row in rows}) for n in ("version", "machine",
             "data_hash")}  # fmt: skip
    failed = sum(row.status != "ok" for row in rows)
    return _facts([
        ("run", f"{board.run.id}, {board.run.state}"),
        ("started", board.run.started), ("finished", board.run.finished),
        ("etude", ", ".join(kinds["version"])), ("machine", "; ".join(kinds["machine"])),
        ("data sha256", ", ".join(kinds["data_hash"])),
        ("measurements", f"{len(rows):,} rows in the ledger, {failed:,} of them failures"),
    ])  # fmt: skip


def report_html(board: Board, rows: Sequence[Row]) -> str:
    """The report as one page; `rows` are the run's measurements in the ledger."""
    run = _text(board.run.id)
    said = "".join(f"<li>{_text(note)}</li>" for note in table.notes(board))
    best = _text(name_of(board.winner)).replace("_", "-")
    keep = f"etude keep {run} --to {best}\netude serve {best}"
    title = f"{_text(board.task)} on {_text(board.data)}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>etude: {title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>:root{{{_theme(0)}}}@media (prefers-color-scheme:dark){{:root{{{_theme(1)}}}}}{STYLE}</style>
</head><body><header><p class="soft">etude · {title}</p>
<h1>{_text(table.headline(board))}</h1></header>
<main>{_leaderboard(board)}<ul>{said}</ul>{_plots(board)}
<h2>Values by seed</h2>{_per_seed(board)}
<h2>Default and tuned</h2>{_tuning(board)}
<h2>What was compared</h2>{_compared(board, board.run.spec)}
<h2>Keep and serve the winner</h2><pre><code>{keep}</code></pre>
<h2>Where and when</h2>{_environment(board, rows)}
<p>Made by</p><pre><code>{_text(board.run.command)}</code></pre></main></body></html>
"""


def write_report(board: Board, rows: Sequence[Row], folder: str | Path) -> Path:
    """Write report.html and report.json into `folder`, each whole or not at all.

    Returns:
        The path of report.html.

    Raises:
        EtudeError: the folder cannot be written to.
    """
    folder = Path(folder)
    twin = json.dumps(table.board_json(board) | {"rows": table.plain(list(rows))}, indent=1)
    page = report_html(board, rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / "report.json", twin + "\n")
        return _replace(folder / "report.html", page)
    except OSError as error:
        why = error.strerror or error
        raise EtudeError(f"the report folder {folder} cannot be written: {why}") from None


def _replace(path: Path, text: str) -> Path:
    with NamedTemporaryFile(
        "w", encoding="utf-8", errors="replace", dir=path.parent, prefix=f".{path.name}-",
        delete=False,
    ) as file:  # fmt: skip
        try:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # a temporary file is private
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return path
