"""A paper's page, its JSON twin and its Markdown."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import RedirectResponse, Response

from etude.core import EtudeError
from etude.lab.ledger import Ledger
from etude.papers.catalogue import paper_of
from etude.papers.entry import Entry
from etude.papers.exporting import bibtex
from etude.site import index
from etude.site.facts import family_entries, method_facts, paper_facts, path_of
from etude.site.pages import votes_of
from etude.site.plot import plot_of
from etude.site.render import Facts, markdown, twins
from etude.site.schema import ERRORS, Name, Whole
from etude.site.state import Site

__all__ = ["RUNS", "ledger_of", "router", "trials_of"]

SIMILAR = 5
RUNS = 40  # of the ledger that are looked through for past trials
TRIALS = 10
_LEDGERS: dict[str | None, Ledger] = {}
_LOCK = Lock()


def ledger_of(site: Site) -> Ledger:
    """The site's ledger, opened once."""
    with _LOCK:
        name = site.settings.ledger
        if name not in _LEDGERS:
            _LEDGERS[name] = Ledger(name)
        return _LEDGERS[name]


def trials_of(site: Site, key: str) -> list[dict[str, Any]]:
    """The last trials of a method: when, on what, its mean and the baseline's on the test part."""
    found: list[dict[str, Any]] = []
    try:
        book = ledger_of(site)
        for run in book.runs(RUNS):
            if len(found) == TRIALS:
                break
            if run.state != "finished" or key not in run.spec.get("methods", ()):
                continue
            metric, base = str(run.spec.get("metric", "")), str(run.spec.get("baseline", ""))
            rows = [r for r in book.rows(run.id) if r.split == "test" and r.metric == metric]
            last = "tuned" if any(r.setting == "tuned" for r in rows) else "default"
            values = {
                name: [r.value for r in rows
                       if r.method == name and r.setting == last and r.value is not None]
                for name in (key, base)
            }  # fmt: skip
            if values[key]:
                means = [sum(v) / len(v) if v else None for v in (values[key], values[base])]
                found.append({
                    "run": run.id, "at": run.started[:16].replace("T", " "),
                    "data": str(run.spec.get("data", "")), "metric": metric,
                    "ours": means[0], "baseline": means[1], "baseline_name": base,
                    "seeds": len(values[key]),
                })  # fmt: skip
    except EtudeError:  # a ledger that is away costs the table, not the page
        return []
    return found


def whole(site: Site, entry: Entry) -> Facts:
    """All that is known of one paper."""
    near = index.similar(site, entry, SIMILAR)
    if not near and entry.slug:  # of the same family, where nothing is known of meaning
        family = family_entries(site, entry.slug.partition(".")[0])
        near = [other for other in family if other.id != entry.id][:SIMILAR]
    votes = votes_of(site, [entry, *near])
    known = method_facts(entry.slug) if entry.slug else None
    return paper_facts([entry], votes)[0] | {
        "similar": paper_facts(near, votes),
        "bibtex": bibtex(replace(entry, abstract="")),
        "known": known,
        "trials": trials_of(site, entry.slug) if known and known["runnable"] else [],
    }


def as_markdown(facts: Facts, base_url: str) -> str:
    """The page as Markdown; text of the paper is shown letter by letter."""
    by = ", ".join(markdown(author) for author in facts["authors"][:100])
    links = [f"<{base_url}{facts['page']}>"]
    if facts["arxiv"]:
        links.append(f"<https://arxiv.org/abs/{facts['arxiv']}>")
    parts = [f"# {markdown(facts['title'])}", by, markdown(facts["date"]), " · ".join(links)]
    known = facts["known"]
    if known:
        parts += ["## The move", markdown(known["move"])]
    if facts["abstract"]:
        parts += ["## Abstract", markdown(facts["abstract"])]
    if known and known["runnable"]:
        calls = "\n".join(["    " + known["import"], *("    " + c for c in known["signature"])])
        parts += ["## Published against measured", f"Claim: {markdown(known['claim'])}"]
        parts += [f"Published: {markdown(known['published'] or 'no figure')}"]
        parts += [f"Measured here: {markdown(known['verdict'] or 'not yet')}"]
        parts += ["\n".join(f"- {_line(row)}" for row in known["measured"])]
        parts += ["## Signature", calls]
    if facts["similar"]:
        near = (f"- [{markdown(p['title'])}]({base_url}{p['page']})" for p in facts["similar"])
        parts += ["## Similar papers", "\n".join(near)]
    fenced = "\n".join("    " + line for line in facts["bibtex"].splitlines())
    parts += ["## Cite", fenced]
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(row: dict[str, Any]) -> str:
    plot = plot_of(row)
    where = " ".join(filter(None, (row["data"], str(row.get("setting", "")))))
    said = f": {plot['said']}" if plot else ""
    return markdown(f"{row['metric']} on {where}{said} ({row['verdict']})")


def router(site: Site) -> APIRouter:
    """The routes of a paper's page: they take every name below /papers/."""
    routes = APIRouter(tags=["papers"])
    site.templates.globals["plot_of"] = plot_of

    def entry_of(name: str) -> Entry:
        entry = None if "\0" in name else site.store.get(name)  # PostgreSQL has no such text
        if entry is not None:
            return entry
        try:  # a slug, an address or an exact title of the catalogue
            known = paper_of(name)
        except EtudeError as error:
            raise HTTPException(
                404, f"There is no paper {name[:60]!r} here. {_near(error)}"
            ) from None
        stored = [e for e in family_entries(site, known.family) if e.slug == known.key]
        if not stored:
            raise _unknown(name)
        return stored[0]

    def paper(name: Name) -> Facts:
        """All that is known of one paper."""
        return whole(site, entry_of(name))

    @routes.get("/papers/{name:path}.md", response_class=Response, responses=_MARKDOWN)
    def paper_as_markdown(name: Name) -> Response:
        """One paper as Markdown."""
        text = as_markdown(whole(site, entry_of(name)), site.settings.base_url)
        return Response(text, media_type="text/markdown; charset=utf-8")

    def page(name: Name) -> Facts | Response:
        entry = entry_of(name)
        if entry.id != name:  # one paper, one address
            return RedirectResponse(path_of(entry.id), 307)
        return whole(site, entry)

    twins(routes, site, "/papers/{name:path}", page, "paper.html", Whole, twin_view=paper)
    return routes


_MARKDOWN: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/markdown": {"schema": {"type": "string"}}}}, **ERRORS
}  # fmt: skip


def _unknown(name: str, near: str = "") -> HTTPException:
    return HTTPException(404, f"There is no paper {name[:60]!r} here. {near}".rstrip())


def _near(error: EtudeError) -> str:
    """What the catalogue's message says of the nearest names."""
    _, mark, near = str(error).partition("the nearest are ")
    return f"The nearest methods are {near}." if mark else ""
