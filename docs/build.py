"""Write the pages of docs/ that repeat what the program knows, or check that they still do.

    python docs/build.py            writes docs/reference/*.md, docs/commands.md, docs/evidence.md
    python docs/build.py --check    exits with 1 and names the pages that are stale

Docstrings, cards and signatures are read from the source text; help texts come from the
command line itself; measured figures from evidence/*.jsonl.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from etude.cli import cli
from etude.core import Card, cards
from etude.core.card import FIDELITIES
from etude.core.index import PACKAGE, public_names
from etude.papers.evidence import evidence
from etude.papers.signature import signature
from etude.tasks.base import METRICS

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- Written by docs/build.py; change the source and run `make docs`. -->\n\n"
COSTS = {"S": "under 30 s", "M": "under 3 min", "L": "under 15 min"}
DASH = "–"
VERDICTS = ("holds", "undecided", "does not hold at this scale")  # in the order of the tables


def pages() -> dict[str, str]:
    """Every generated page by its path below docs/."""
    found = {"commands.md": commands_page(), "evidence.md": evidence_page()}
    for family in dict.fromkeys(card.family for card in cards().values()):
        found[f"reference/{family}.md"] = family_page(family)
    found["reference/index.md"] = reference_index()
    return {path: NOTE + text.rstrip() + "\n" for path, text in found.items()}


def inline(text: str) -> str:
    """Prose as Markdown shows it letter by letter, on one line; what is in backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its pair
        parts = [text.replace("`", "'")]
    for i in range(0, len(parts), 2):
        for sign in "\\*_<|":
            parts[i] = parts[i].replace(sign, f"\\{sign}")
    return " ".join("`".join(parts).split())


def prose(doc: str) -> str:
    """A docstring: its indented lines are code already, the rest is shown letter by letter."""
    lines = (line if line.startswith("    ") else inline(line) for line in doc.splitlines())
    return "\n".join(lines)


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells are Markdown."""
    lines = [list(heads), ["---"] * len(list(heads)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reference_index() -> str:
    """All methods on one page."""
    lines = [
        [
            f"[{card.slug}]({card.family}.md#{card.slug})",
            card.family,
            inline(card.move),
            verdict(card),
        ]
        for card in cards().values()
    ]
    head = "# Reference\n\nOne page a family; one paper, one module.\n\n"
    return head + table(("method", "family", "the move", "claim"), lines)


def family_page(family: str) -> str:
    """A family: its docstring, then each of its methods."""
    own = [card for card in cards().values() if card.family == family]
    doc = ast.get_docstring(parsed(PACKAGE / family / "__init__.py")) or ""
    return "\n\n".join([f"# {family}", prose(doc), choice(own), *map(method_section, own)])


def choice(own: list[Card]) -> str:
    """When to use which: the headline of each method's evidence, what holds first."""
    lines: list[tuple[int, list[str]]] = []
    for card in own:
        link = f"[{card.slug}](#{card.slug})"
        row = next((r for r in evidence(card.slug) if r["headline"]), None)
        cells = ["not measured yet", *[DASH] * 4] if row is None else [
            f"**{row['verdict']}**", where(row), f"{arrowed(row)} {difference(row)}",
            f"`{row['baseline_name']}`", took(row),
        ]  # fmt: skip
        place = len(VERDICTS) if row is None else VERDICTS.index(row["verdict"])
        lines.append((place, [link, *cells]))
    heads = ("method", "verdict", "on", "difference [95 % interval]", "against", "took")
    return f"""## When to use which

By what was measured here, not by what the papers say: a claim that holds on data like yours is the
first to try, and `etude compare FILE` decides. A line is a claim's headline, what holds first.

{table(heads, (line for _, line in sorted(lines, key=lambda pair: pair[0])))}"""


def where(row: dict[str, Any]) -> str:
    """The data and the setting of a measurement."""
    return inline(" ".join(filter(None, (str(row["data"]), str(row.get("setting", ""))))))


def took(row: dict[str, Any]) -> str:
    """The time that all seeds of the claim's experiment took."""
    return f"{row['seconds']:,.0f} s, {row['seeds']} seeds" if "seconds" in row else DASH


def parsed(path: Path) -> ast.Module:
    """The source at `path` as a tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def method_section(card: Card) -> str:
    """The paper, the equation, how to call it, what it claims and what was measured."""
    tree = parsed(PACKAGE / card.family / f"{card.slug}.py")
    links = [f"[arXiv:{card.arxiv}](https://arxiv.org/abs/{card.arxiv})"] if card.arxiv else []
    if card.code:
        links.append(f"[official code](https://github.com/{card.code})")
    names = public_names(card)
    knobs = "; ".join(f"`{k}`: {', '.join(map(repr, v))}" for k, v in card.search.items())
    facts = [
        ("task", f"{card.task}, against `{card.baseline}`"),
        ("claim", inline(card.claim)),
        ("metric", f"{card.metric}, {card.better} is better"),
        ("published", inline(card.published) or "no figure"),
        ("fidelity", f"{card.fidelity}: {FIDELITIES[card.fidelity]}"),
        ("departs", inline(" ".join(card.departs)) or "in nothing"),
        ("cost of the claim", COSTS[card.cost]),
        ("tuned over", knobs or "nothing"),
    ]
    calls = "\n".join(signature(card))
    parts = [
        f"## {card.slug}",
        f"**{inline(card.title)}** ({card.year}) {' · '.join(links)}".rstrip(),
        f"```text\nfrom etude.{card.family} import {', '.join(names)}\n\n{calls}\n```",
        prose(ast.get_docstring(tree) or ""),
        table(("", ""), ((name, value) for name, value in facts)),
        measured(card),
    ]
    return "\n\n".join(parts)


def measured(card: Card) -> str:
    """All measurements of a card as a table; the claim itself in bold."""
    rows = evidence(card.slug)
    if not rows:
        return f"Not measured yet: `etude verify {card.slug}` does."
    lines = []
    for row in rows:
        mark = "**" if row["headline"] else ""
        lines.append([
            f"{mark}{where(row)}{mark}", arrowed(row), figure(row["ours_mean"]),
            f"{figure(row['baseline_mean'])} `{row['baseline_name']}`", difference(row),
            str(row.get("seeds", DASH)), row["verdict"],
        ])  # fmt: skip
    heads = ("data", "metric", "ours", "baseline", "difference [95 % interval]", "seeds", "verdict")
    return table(heads, lines)


def arrowed(row: dict[str, Any]) -> str:
    """The metric with its direction."""
    return f"{row['metric']} {'↑' if METRICS[row['metric']].better == 'higher' else '↓'}"


def against(row: dict[str, Any]) -> str:
    """Both means, the baseline's name and the data."""
    named = f"`{row['baseline_name']}`, {where(row)}"
    ours, theirs = figure(row["ours_mean"]), figure(row["baseline_mean"])
    return f"{arrowed(row)} {ours} against {theirs} ({named})"


def figure(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def difference(row: dict[str, Any]) -> str:
    """The mean difference and its interval."""
    gap = row.get("difference", row["ours_mean"] - row["baseline_mean"])
    if row.get("low") is None or row.get("high") is None:
        return f"{gap:+.3g}"
    return f"{gap:+.3g} [{row['low']:+.3g}, {row['high']:+.3g}]"


def verdict(card: Card) -> str:
    """What became of the claim."""
    rows = [row for row in evidence(card.slug) if row["headline"]]
    return rows[0]["verdict"] if rows else "not measured yet"


def evidence_page() -> str:
    """Every claim with what the paper published and what was measured here."""
    lines, machines = [], set()
    for card in cards().values():
        rows = [row for row in evidence(card.slug) if row["headline"]]
        for row in rows:
            machines.add(" on ".join(str(row.get(k, "?")) for k in ("version", "machine")))
        first = rows[0] if rows else None
        lines.append([
            f"[{card.slug}](reference/{card.family}.md#{card.slug})", inline(card.claim),
            inline(card.published) or "no figure",
            against(first) if first else "not measured yet",
            difference(first) if first else DASH, f"**{verdict(card)}**",
            str(first.get("seeds", DASH)) if first else DASH,
            f"{first['seconds']:,.0f} s" if first and "seconds" in first else DASH,
        ])  # fmt: skip
    heads = ("method", "claim", "published", "measured", "difference [95 % interval]", "verdict",
             "seeds", "took")  # fmt: skip
    made = "; ".join(sorted(machines)) or "nothing yet"
    return f"""# Evidence

Every claim that a method's card declares, with what its paper published and what was measured
here, on small data and two cores. A claim that does not hold at this scale stands in the same
table as one that holds. `etude verify SLUG` measures one again; `make evidence` all of them.

{table(heads, lines)}

Measured with etude {made}. Further measurements of each method are on its
[reference](reference/index.md) page; how a verdict is made is in [fair-trial.md](fair-trial.md).
"""


def commands_page() -> str:
    """The help text of every verb."""
    parts = ["# Commands", "What `etude VERB --help` prints.", block(cli, "etude", None)]
    return "\n\n".join([*parts, *verb_sections(cli, "etude", None)])


def verb_sections(group: click.Group, path: str, parent: click.Context | None) -> list[str]:
    """A section for each verb below `group`, in the group's own order."""
    context = click.Context(group, info_name=path, parent=parent)
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found += [f"## {path} {name}", block(command, name, context)]
        if isinstance(command, click.Group):
            found += verb_sections(command, f"{path} {name}", None)
    return found


def block(command: click.Command, name: str, parent: click.Context | None) -> str:
    """The help text of one command, at a width that does not depend on the terminal."""
    context = click.Context(
        command, info_name=name, parent=parent, terminal_width=80, max_content_width=80,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    return f"```text\n{command.get_help(context)}\n```"


def stale(folder: Path = DOCS) -> list[str]:
    """Pages that differ from what would be written, are missing, or belong to nothing."""
    wanted = pages()
    found = [
        path for path, text in wanted.items()
        if not (folder / path).is_file() or (folder / path).read_text(encoding="utf-8") != text
    ]  # fmt: skip
    there = (f"reference/{path.name}" for path in (folder / "reference").glob("*.md"))
    return sorted([*found, *(path for path in there if path not in wanted)])


def write(folder: Path = DOCS) -> None:
    """Write all pages, and remove reference pages of families that are no more."""
    wanted = pages()
    (folder / "reference").mkdir(parents=True, exist_ok=True)
    for path in (folder / "reference").glob("*.md"):
        if f"reference/{path.name}" not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(words: list[str]) -> int:
    """Write, or with --check only compare; the exit status."""
    if words == ["--check"]:
        old = stale()
        for path in old:
            print(f"docs/{path} is stale: run `make docs`", file=sys.stderr)
        return 1 if old else 0
    if words:
        print(__doc__, file=sys.stderr)
        return 2
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
