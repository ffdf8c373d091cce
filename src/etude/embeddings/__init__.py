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
from etude.embeddings.relative_representation import RelativeProjection, anchor_select, stitch
from etude.embeddings.stationary_compatible import (
    DSimplexClassifier,
    HOCLoss,
    average_compatibility,
    compatibility_matrix,
)
from etude.embeddings.unified_embedding import (
    SeparateTables,
    UnifiedEmbedding,
    multiplexed_hash,
    proportional_rows,
)

__all__ = [
    "ConstrainedPQ",
    "DSimplexClassifier",
    "HOCLoss",
    "MatryoshkaHead",
    "MatryoshkaLoss",
    "OrthogonalMBAT",
    "RelativeProjection",
    "RepCONCTrainer",
    "SeparateTables",
    "UnifiedEmbedding",
    "adaptive_retrieval",
    "anchor_select",
    "average_compatibility",
    "compatibility_matrix",
    "encode_json",
    "funnel_retrieval",
    "ivf_pq_search",
    "multiplexed_hash",
    "proportional_rows",
    "stitch",
]
