"""Where a database's search index is: one place, so that import, search and site share it."""

from __future__ import annotations

from pathlib import Path

from etude.papers.store import Store

__all__ = ["index_folder"]


def index_folder(store: Store) -> Path:
    """Beside an SQLite file; in the user's ``~/.etude`` for the default file and PostgreSQL."""
    home = Path("~/.etude").expanduser()
    if store.name == str(home / "papers.sqlite"):
        return home / "index"
    if store.database.is_file:
        return Path(f"{store.name}.index")
    return home / f"index-{store.identity}"
