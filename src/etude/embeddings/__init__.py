"""Embeddings: how a representation is trained, cut, compared and searched.

Objectives are torch modules on (B, D) embeddings; searches take numpy arrays.
"""

from etude.embeddings.binary_paragraph_vector import (
    BinaryPVDBOW,
    DisambiguatedSkipGram,
    hamming_search,
)
from etude.embeddings.bt2_compatible import (
    BasisTransformationHead,
    BT2Parts,
    bt2_loss,
    zero_pad_old,
)
from etude.embeddings.conditional_cross_attention import (
    ConditionalCrossAttention,
    MultiSpaceEmbedder,
    attribute_triplet_loss,
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
from etude.embeddings.embedding_probe_suite import (
    evaluate_embeddings,
    glove,
    ppmi_svd,
    sentence_vectors,
    sgns,
    subword_vectors,
    weat,
)
from etude.embeddings.matryoshka_representation import (
    MatryoshkaHead,
    MatryoshkaLoss,
    adaptive_retrieval,
    funnel_retrieval,
)
from etude.embeddings.mbat_json import OrthogonalMBAT, encode_json
from etude.embeddings.moe_domain_embedding import EnforcedMoEEncoder, cocitation_pairs, mnr_loss
from etude.embeddings.nonconvex_sparse_coding import (
    SparseCoder,
    cel0_penalty,
    cel0_threshold,
    half_threshold,
    hard_threshold,
    soft_threshold,
    whiten_patches,
)
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
    "BinaryPVDBOW",
    "CompressionLine",
    "ConditionalCrossAttention",
    "ConstrainedPQ",
    "DSimplexClassifier",
    "DisambiguatedSkipGram",
    "EmbeddingCompressionBench",
    "EnforcedMoEEncoder",
    "HOCLoss",
    "MatryoshkaHead",
    "MatryoshkaLoss",
    "MultiSpaceEmbedder",
    "OrthogonalMBAT",
    "RelativeProjection",
    "RepCONCTrainer",
    "SeparateTables",
    "SparseCoder",
    "UnifiedEmbedding",
    "adaptive_retrieval",
    "anchor_select",
    "attribute_triplet_loss",
    "average_compatibility",
    "bt2_loss",
    "cel0_penalty",
    "cel0_threshold",
    "cocitation_pairs",
    "compatibility_matrix",
    "compressed_embedding",
    "encode_json",
    "evaluate_embeddings",
    "funnel_retrieval",
    "glove",
    "half_threshold",
    "hamming_search",
    "hard_threshold",
    "ivf_pq_search",
    "memory_bytes",
    "mnr_loss",
    "multiplexed_hash",
    "ppmi_svd",
    "proportional_rows",
    "sentence_vectors",
    "sgns",
    "soft_threshold",
    "stitch",
    "subword_vectors",
    "weat",
    "whiten_patches",
    "zero_pad_old",
]
