"""``etude verify``: the claim of a card, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from etude.core import Card
    from etude.lab.verify import Finding


@click.command("verify")
@click.argument("slug", required=False)
@click.option("--family", help="Every method of a family.")
@click.option("--all", "everything", is_flag=True, help="Every method.")
@click.option("--cost", default="SML", show_default=True, help="Only claims of these costs.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Default: 5, for cost L 3.")
@click.option("--ledger", metavar="URL", help="File or postgresql:// URL of the ledger.")
@click.option("--evidence", metavar="FOLDER", help="Write the findings there as well.")
@click.option("--fresh", is_flag=True, help="Measure again what has been measured.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    slug: str | None, family: str | None, everything: bool, cost: str, seeds: int | None,
    ledger: str | None, evidence: str | None, fresh: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure the claim that a method's card declares, and record it as evidence.

    \b
    Example:
      etude verify naive_bayes_probe
      etude verify --family losses --cost SM

    Exit status 1 where a headline claim does not hold at this scale.
    """
    import json
    from dataclasses import asdict
    from pathlib import Path

    from etude.cli import trials
    from etude.core import EtudeError
    from etude.lab.verify import verify, write_evidence

    findings: list[Finding] = []
    trouble = []
    chosen = _chosen(slug, family, everything, cost)
    for card in chosen:
        try:
            with trials.bar(quiet=as_json) as progress:
                found = verify(card, seeds=seeds, ledger=ledger, fresh=fresh, progress=progress)
        except EtudeError as error:
            if len(chosen) == 1:
                raise
            trouble.append(f"{card.key}: {error}")
            continue
        findings += found
        if evidence is not None:
            write_evidence(found, Path(evidence))
        if not as_json:
            _show(found)
    if as_json:
        rows = [asdict(finding) for finding in findings]
        click.echo(json.dumps({"findings": rows, "not_measured": trouble}, indent=2))
    for line in trouble:
        click.echo(f"not measured: {line}", err=True)
    refuted = [f for f in findings if f.headline and f.label in ("worse", "tie")]
    if refuted or trouble:
        click.get_current_context().exit(1)


def _chosen(slug: str | None, family: str | None, everything: bool, cost: str) -> list[Card]:
    from etude.core import EtudeError, card_of, cards

    if sum((slug is not None, family is not None, everything)) != 1:
        raise EtudeError("name one of: a SLUG, --family FAMILY, --all")
    if slug is not None:
        return [card_of(slug)]
    found = [c for c in cards().values() if everything or c.family == family]
    found = [c for c in found if c.cost in cost.upper()]
    if not found:
        raise EtudeError(f"no method of family {family!r} and cost {cost!r} is runnable here")
    return found


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = findings[0]
    table = Table(title=f"{first.method}: {first.verdict}", title_justify="left", box=None)
    for name, justify in (
        ("metric", "left"), ("against", "left"), ("ours", "right"), ("theirs", "right"),
        ("difference [95 %]", "right"), ("verdict", "left"),
    ):  # fmt: skip
        table.add_column(name, justify="right" if justify == "right" else "left")
    for finding in findings:
        where = f"{finding.metric}\n  {finding.data}" + (
            f", {finding.setting}" if finding.setting else ""
        )
        table.add_row(
            where, finding.baseline_name, f"{finding.ours_mean:.4g}",
            f"{finding.baseline_mean:.4g}",
            f"{finding.difference:+.3g}\n[{finding.low:+.3g}, {finding.high:+.3g}]", finding.label,
        )  # fmt: skip
    console = Console(width=80) if not Console().is_terminal else Console()
    console.print(table, markup=False)
