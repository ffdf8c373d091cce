"""What all pages depend on, summed up: it changes whenever a page would."""

from __future__ import annotations

import sqlalchemy as sa

from etude.core import EtudeError
from etude.site import index
from etude.site.paper_page import RUNS, ledger_of
from etude.site.state import Site
from etude.site.votes import VOTES, votes

__all__ = ["stamp_of"]


def stamp_of(site: Site) -> object:
    """The store's last change, the votes, the ends of imports, the ledger's last runs, the offer.

    Raises:
        EtudeError: the papers' database cannot be used.
    """
    ends = tuple(tuple(end) for end in site.store.refreshed())
    count = sa.select(sa.func.count(), sa.func.max(VOTES.c.at))
    with votes(site).database.begin() as connection:
        voted = tuple(connection.execute(count).one())
    making = index.progress(site) is not None
    known = site.settings  # a site that is started anew may offer trials, or no longer
    offered = known.allow_trials, bool(known.token), known.trial_s, known.upload_bytes
    return site.store.changed(), voted, ends, making, _ledger(site), offered


def _ledger(site: Site) -> object:
    """What changes when a trial that a page shows ends; () where the ledger is away."""
    try:
        runs = ledger_of(site).runs(RUNS)
    except EtudeError:
        return ()
    return tuple((run.id, run.state, run.finished) for run in runs)
