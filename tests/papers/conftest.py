"""Where the papers of a test are kept: SQLite, and PostgreSQL where a server is named."""

import os
import uuid

import pytest

from etude.papers.store import Store

SERVER = os.environ.get("ETUDE_TEST_POSTGRES", "")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request, tmp_path):
    """The address of an empty database."""
    if request.param == "sqlite":
        yield str(tmp_path / "deep" / "papers.sqlite")
        return
    if not SERVER:
        pytest.skip("ETUDE_TEST_POSTGRES names no PostgreSQL server")
    import psycopg

    schema = f"t{uuid.uuid4().hex}"
    with psycopg.connect(SERVER, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        mark = "&" if "?" in SERVER else "?"
        yield f"{SERVER}{mark}options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def store(url):
    """A store that holds the catalogue only."""
    store = Store(url)
    yield store
    store.close()
