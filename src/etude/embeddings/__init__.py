"""Embeddings: how a representation is trained, cut, compared and searched.

Objectives are torch modules on (B, D) embeddings; searches take numpy arrays.
"""

from etude.embeddings.bt2_compatible import (
    BasisTransformationHead,
    BT2Parts,
    bt2_loss,
    zero_pad_old,
)
from etude.embeddings.constrained_clustering_pq import (
    ConstrainedPQ,
    RepCONCTrainer,
    ivf_pq_search,
)
from etude.embeddings.embedding_compression_bench import (
    CompressionLine,
    EmbeddingCompressionBench,
    compressed_embedding,
    memory_bytes,
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
    "BT2Parts",
    "BasisTransformationHead",
    "CompressionLine",
    "ConstrainedPQ",
    "DSimplexClassifier",
    "EmbeddingCompressionBench",
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
    "bt2_loss",
    "compatibility_matrix",
    "compressed_embedding",
    "encode_json",
    "funnel_retrieval",
    "ivf_pq_search",
    "memory_bytes",
    "multiplexed_hash",
    "proportional_rows",
    "stitch",
    "zero_pad_old",
]
