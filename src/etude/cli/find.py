"""``etude find``: papers for a need in plain words."""

from __future__ import annotations

import click

WIDTH = 80


@click.command("find")
@click.argument("query", nargs=-1, required=True)
@click.option("-k", "count", default=10, show_default=True, help="How many papers to show.")
@click.option("--runnable", is_flag=True, help="Only papers that run here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(query: tuple[str, ...], count: int, runnable: bool, as_json: bool) -> None:
    """Rank the papers of the catalogue for a need in plain words.

    \b
    Example:
      etude find "smaller embeddings without losing recall"

    Exit status 1 where nothing was found.
    """
    from etude.papers.evidence import headline
    from etude.papers.find import find

    hits = find(" ".join(query), count, runnable=runnable)
    rows = []
    for rank, hit in enumerate(hits, 1):
        paper = hit.paper
        best = headline(paper.slug) if hit.runnable else None
        rows.append(
            {
                "rank": rank,
                "key": paper.key,
                "title": paper.title,
                "year": paper.year,
                "arxiv": paper.arxiv,
                "family": paper.family,
                "slug": paper.slug,
                "move": paper.move,
                "runnable": hit.runnable,
                "verdict": best["verdict"] if best else None,
                "measured": best,
                "score": round(hit.score, 6),
                "rank_by_words": hit.words,
                "rank_by_meaning": hit.meaning,
            }
        )
    if as_json:
        import json

        answer = {"query": hits.query, "note": hits.note, "papers": rows}
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _show(rows, hits.note)
    if not rows:
        click.get_current_context().exit(1)


def _show(rows: list[dict[str, object]], note: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.width = min(console.width, WIDTH)
    if rows:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=True, show_edge=False)
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("paper", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("year, arXiv", no_wrap=True)
        table.add_column("runs", no_wrap=True)
        table.add_column("measured", no_wrap=True, width=13, overflow="ellipsis")
        for row in rows:
            runs = bool(row["runnable"])
            verdict = str(row["verdict"] or ("not yet" if runs else "")).split(" at ")[0]
            table.add_row(
                str(row["rank"]),
                Text.assemble(str(row["title"]), "\n", (str(row["slug"]), "cyan")),
                Text(f"{row['year']} {row['arxiv']}\n{row['family']}"),
                Text("yes" if runs else "no", style="green" if runs else "dim"),
                Text(verdict, style={"holds": "green", "does not hold": "red"}.get(verdict, "")),
            )
        console.print(table)
        console.print("etude info NAME tells more, such as: etude info " + str(rows[0]["slug"]))
    else:
        console.print("nothing found; try other words")
    if note:
        click.echo(note, err=True)
