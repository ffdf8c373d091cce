"""What the first reader of each kind of page would wait for, loaded before one comes.

None of it is work for a page: it is templates that are compiled, tables of the package that are
read, the compiled loops of the index, the encoder and its weights.
"""

from __future__ import annotations

from fastapi import Request

from etude.core import cards
from etude.site import pages, paper_page
from etude.site.facts import family_entries, verdict_of
from etude.site.state import Site

__all__ = ["warm"]


def warm(site: Site) -> None:
    """Load it for the site of an app.

    Raises:
        EtudeError: the index or the database cannot be used.
    """
    nobody = Request({"type": "http", "path": "/", "query_string": b"", "headers": []})
    site.page(nobody, "listing.html", facts=pages.latest(site))
    for name in site.templates.list_templates(extensions=["html"]):
        if not name.startswith("mail_"):  # those have filters of their own
            site.templates.get_template(name)
    site.finder.warm()
    for entry in family_entries(site, runnable=True)[:1]:
        site.page(nobody, "paper.html", facts=paper_page.whole(site, entry))
    for key in cards():
        verdict_of(key)
