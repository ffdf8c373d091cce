"""``etude info``: one paper, what it does, and what was measured here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 80


@click.command("info")
@click.argument("name", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: tuple[str, ...], as_json: bool) -> None:
    """Show one paper: the move, the signature, published beside measured, how to try it.

    NAME is a slug, an arXiv id or address, or the exact title.

    \b
    Example:
      etude info muvera
      etude info arXiv:2405.19504v2
    """
    from etude.papers import paper_of
    from etude.papers.about import about

    facts = about(paper_of(" ".join(name)))
    if as_json:
        import json

        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    _show(facts, console)


def _show(facts: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    console.print(Text(facts["title"], style="bold"))
    console.print(Text(f"{facts['year']}  {facts['url'] or 'no arXiv id known'}"))
    console.print()
    console.print(Text(facts["move"]))
    console.print()
    lines = {
        "name": facts["key"],
        "fidelity": f"{facts['fidelity']}: {facts['fidelity_means']}",
        "cost": {"S": "under 30 s", "M": "under 3 min", "L": "under 15 min"}[facts["cost"]],
        "code": f"https://github.com/{facts['code']}" if facts["code"] else "",
    }
    if facts["runnable"]:
        lines |= {
            "import": facts["import"],
            "signature": "\n".join(facts["signature"]),
            "task": facts["task"],
            "claim": facts["claim"],
            "baseline": facts["baseline"],
            "metric": f"{facts['metric']}, {facts['better']} is better",
            "published": facts["published"] or "no figure",
            "departs": "\n".join(facts["departs"]) or "in nothing",
        }
    _pairs(lines, console)
    if not facts["runnable"]:
        console.print("\nnot yet runnable here")
    else:
        console.print()
        _measured(facts["measured"], console)
        console.print()
        console.print(Text("\n".join(facts["commands"]), style="cyan"))
    if facts["similar"]:
        console.print("\nsimilar")
        for near in facts["similar"]:
            mark = " (runs)" if near["runnable"] else ""
            console.print(Text(f"  {near['key']}{mark}", style="cyan"))
            console.print(Text(f"    {near['title']}"), no_wrap=True, overflow="ellipsis")


def _pairs(lines: dict[str, str], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines.items():
        if value:
            table.add_row(name, Text(value))
    console.print(table)


def _measured(rows: list[dict[str, Any]], console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console.print("nothing measured yet")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for name in ("measured", "ours", "baseline", "difference", "verdict"):
        table.add_column(name, overflow="fold")
    for row in rows:
        where = " ".join(filter(None, (row["data"], row.get("setting", ""))))
        low, high = row.get("low"), row.get("high")
        interval = "" if low is None or high is None else f"\n[{low:+.3g}, {high:+.3g}]"
        difference = row.get("difference", row["ours_mean"] - row["baseline_mean"])
        table.add_row(
            Text(f"{row['metric']}\n{where}"),
            f"{row['ours_mean']:.4g}",
            Text(f"{row['baseline_mean']:.4g}\n{row['baseline_name']}"),
            Text(f"{difference:+.3g}{interval}"),
            Text(row["verdict"]),
        )
    console.print(table)
    seeds = {str(len(s) if isinstance(s := row.get("seeds", ""), list) else s) for row in rows}
    console.print(Text(f"95 % intervals over {', '.join(sorted(seeds))} paired seeds"))
