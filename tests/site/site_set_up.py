"""A site with a few papers for the tests of its pages; nothing of it reads the user's home."""

from contextlib import contextmanager
from pathlib import Path

from starlette.testclient import TestClient

from etude.papers.entry import Entry
from etude.site.app import make_app
from etude.site.settings import Settings

HOSTILE = 'Eve <script>alert(1)</script> & "quotes" \x1b[31mred\x1b[0m ]]> </title> {{ 7*7 }}'
PAPERS = [
    Entry(
        title="MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings",
        abstract="Late interaction by one vector.", authors=("Laxman Dhulipala", "Majid Hadian"),
        arxiv="2405.19504", date="2026-11-20", categories=("cs.DS",), votes=12, sources=("test",),
    ),
    Entry(title="Plain paper of the first day", abstract="About nothing much.", date="2026-11-20",
          arxiv="2611.00001", votes=3, sources=("test",)),
    Entry(title="Newest paper", abstract="It is new.", date="2026-11-22", arxiv="2611.00002",
          authors=("A <b>Bold</b> Author",), votes=1, sources=("test",)),
    Entry(title=HOSTILE, abstract="<img src=x onerror=alert(2)> \x00\x07 \u202e gpj.exe \u2028 end",
          date="2026-11-22", arxiv="2611.00003", votes=2, sources=("<i>test</i>",)),
    Entry(title="Old style id", abstract="From long ago.", arxiv="cs/0112017", date="2001-12-12"),
]  # fmt: skip


def settings_of(folder: Path, **words) -> Settings:
    facts = {
        "database": str(folder / "papers.sqlite"), "ledger": str(folder / "ledger.sqlite"),
        "folder": folder / "site", "base_url": "http://testserver", "secret": "s" * 32,
    }  # fmt: skip
    return Settings(**facts | words)


@contextmanager
def site_client(folder: Path, papers=tuple(PAPERS), **words):
    """A client of a site that holds the catalogue and `papers`."""
    app = make_app(settings_of(folder, **words))
    app.state.site.store.add(papers)
    with TestClient(app, follow_redirects=False, raise_server_exceptions=False) as client:
        yield client
