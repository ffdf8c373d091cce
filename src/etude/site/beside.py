"""What the site keeps beside the papers, in their database: votes, and who gets mail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from etude.lab.database import Database
from etude.papers.tables import papers_url

if TYPE_CHECKING:
    from etude.papers.store import Store
    from etude.site.state import Site

__all__ = ["Beside"]


class Beside:
    """Tables in the papers' database; a subclass names them.

    Attributes:
        tables, version, what: as of ``Database``.

    Args:
        url: as of ``Store``.

    Raises:
        EtudeError: the database cannot be used; so does every method.
    """

    tables: ClassVar[sa.MetaData]
    version: ClassVar[int] = 1
    what: ClassVar[str]
    _open: ClassVar[WeakKeyDictionary[Store, Any]]

    def __init_subclass__(cls) -> None:
        cls._open = WeakKeyDictionary()

    def __init__(self, url: str | None) -> None:
        url = papers_url(url)
        self.database = Database(url, self.tables, version=self.version, what=self.what)

    @classmethod
    def of(cls, site: Site) -> Self:
        """Those of a site, opened once."""
        if site.store not in cls._open:
            cls._open[site.store] = cls(site.settings.database)
        found: Self = cls._open[site.store]
        return found

    def close(self) -> None:
        """Give the connections back."""
        self.database.close()
