"""Retrieval: codes, indexes and measuring rules for finding documents by vectors.

A document or a query is a vector, or a set of token vectors of any number.
"""

from etude.retrieval.bidr import (
    BiGranularIndex,
    ContrastiveProductQuantizer,
    locality_centric_batches,
)
from etude.retrieval.dbnorm import (
    dual_dynamic_inverted_softmax,
    dual_inverted_softmax,
    hub_offset,
    hub_skewness,
)
from etude.retrieval.hnsw_order_study import HNSW, local_intrinsic_dim, order_experiment
from etude.retrieval.muvera import MuveraEncoder, chamfer, muvera_search

__all__ = [
    "BiGranularIndex",
    "ContrastiveProductQuantizer",
    "HNSW",
    "MuveraEncoder",
    "chamfer",
    "dual_dynamic_inverted_softmax",
    "dual_inverted_softmax",
    "hub_offset",
    "hub_skewness",
    "local_intrinsic_dim",
    "locality_centric_batches",
    "muvera_search",
    "order_experiment",
]
