"""Retrieval: codes, indexes and measuring rules for finding documents by vectors.

A document or a query is a vector, or a set of token vectors of any number.
"""

from etude.retrieval.bidr import (
    BiGranularIndex,
    ContrastiveProductQuantizer,
    locality_centric_batches,
)
from etude.retrieval.coarse_to_fine_video_text import (
    InteractiveSimilarityAggregation,
    UCoFiA,
    sinkhorn_normalize,
)
from etude.retrieval.crisp_multivector import (
    ClusteredMultiVector,
    chamfer_similarity,
    k_spacing,
    kmeans_tokens,
    tail_pruning,
)
from etude.retrieval.dbnorm import (
    dual_dynamic_inverted_softmax,
    dual_inverted_softmax,
    hub_offset,
    hub_skewness,
)
from etude.retrieval.furniture_set_retrieval import (
    ContextReranker,
    FurnitureSetRetriever,
    SiameseMultiTask,
    make_room_sets,
    pseudo_attributes,
)
from etude.retrieval.genecis import (
    Combiner,
    conditional_recall_at_k,
    genecis_gallery,
    mine_condition_triplets,
)
from etude.retrieval.hnsw_order_study import HNSW, local_intrinsic_dim, order_experiment
from etude.retrieval.image_rag import Cues, ImageRAG, patchify
from etude.retrieval.landmarks_v2_protocol import (
    InstanceBenchmark,
    LandmarkProtocol,
    make_instance_benchmark,
    mean_average_precision_at_k,
    micro_average_precision,
)
from etude.retrieval.lexlip import (
    InvertedIndex,
    LexiconEncoder,
    flops_regularizer,
    lexicon_bottleneck,
)
from etude.retrieval.multigrained_uncertainty import (
    ComposedRetriever,
    MultiGrainedUncertaintyLoss,
    NormalAugmenter,
)
from etude.retrieval.multilevel_mel_matching import M3ELMatcher, intra_inter_contrastive
from etude.retrieval.muvera import MuveraEncoder, chamfer, muvera_search
from etude.retrieval.noise_aware_rerank_rag import (
    Reranked,
    RerankHead,
    ToyMultimodalRAG,
    adaptive_filter,
    adaptive_threshold,
    diffusion_noise,
    noise_injected_loss,
)
from etude.retrieval.scaling_negatives_cir import (
    StaticNegativeBank,
    TwoStageCIRTrainer,
    synthesize_triplets,
)
from etude.retrieval.task_discrepancy_text_cir import (
    RTDTrainer,
    refined_concat,
    text_triplet_contrast,
)

__all__ = [
    "BiGranularIndex",
    "ClusteredMultiVector",
    "Combiner",
    "ComposedRetriever",
    "ContextReranker",
    "ContrastiveProductQuantizer",
    "Cues",
    "FurnitureSetRetriever",
    "HNSW",
    "ImageRAG",
    "InstanceBenchmark",
    "InteractiveSimilarityAggregation",
    "InvertedIndex",
    "LandmarkProtocol",
    "LexiconEncoder",
    "M3ELMatcher",
    "MultiGrainedUncertaintyLoss",
    "MuveraEncoder",
    "NormalAugmenter",
    "RTDTrainer",
    "RerankHead",
    "Reranked",
    "SiameseMultiTask",
    "StaticNegativeBank",
    "ToyMultimodalRAG",
    "TwoStageCIRTrainer",
    "UCoFiA",
    "adaptive_filter",
    "adaptive_threshold",
    "chamfer",
    "chamfer_similarity",
    "conditional_recall_at_k",
    "diffusion_noise",
    "dual_dynamic_inverted_softmax",
    "dual_inverted_softmax",
    "flops_regularizer",
    "genecis_gallery",
    "hub_offset",
    "hub_skewness",
    "intra_inter_contrastive",
    "k_spacing",
    "kmeans_tokens",
    "lexicon_bottleneck",
    "local_intrinsic_dim",
    "locality_centric_batches",
    "make_instance_benchmark",
    "make_room_sets",
    "mean_average_precision_at_k",
    "micro_average_precision",
    "mine_condition_triplets",
    "muvera_search",
    "noise_injected_loss",
    "order_experiment",
    "patchify",
    "pseudo_attributes",
    "refined_concat",
    "sinkhorn_normalize",
    "synthesize_triplets",
    "tail_pruning",
    "text_triplet_contrast",
]
