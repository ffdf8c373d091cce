"""Shared set-up of the papers' tests: a store on SQLite and on PostgreSQL."""

import pytest

from etude.papers.store import Store


@pytest.fixture
def store(database):
    """A store that holds the catalogue only."""
    store = Store(database)
    yield store
    store.close()
