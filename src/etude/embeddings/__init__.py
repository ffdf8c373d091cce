"""Embeddings: how a representation is trained, cut, compared and searched.

Objectives are torch modules on (B, D) embeddings; searches take numpy arrays.
"""

from etude.embeddings.constrained_clustering_pq import (
    ConstrainedPQ,
    RepCONCTrainer,
    ivf_pq_search,
)
from etude.embeddings.matryoshka_representation import (
    MatryoshkaHead,
    MatryoshkaLoss,
    adaptive_retrieval,
    funnel_retrieval,
)
from etude.embeddings.mbat_json import OrthogonalMBAT, encode_json

__all__ = [
    "ConstrainedPQ",
    "MatryoshkaHead",
    "MatryoshkaLoss",
    "OrthogonalMBAT",
    "RepCONCTrainer",
    "adaptive_retrieval",
    "encode_json",
    "funnel_retrieval",
    "ivf_pq_search",
]
