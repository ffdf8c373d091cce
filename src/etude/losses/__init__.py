"""Losses: what the training of a classifier minimizes.

Each is a torch module called with a batch of logits (or embeddings) and its labels.
"""

from etude.losses.bias_loss import BiasLoss, SkipBlock, feature_variance_weight
from etude.losses.cnn_svm import CNNSVM, L2SVMLoss
from etude.losses.comp_sum_loss import (
    CompSumLoss,
    SmoothAdversarialCompSumLoss,
    h_consistency_transform,
)
from etude.losses.decoupled_softmax import (
    DecoupledSoftmaxLoss,
    SoftTopKLoss,
    log_soft_topk,
    soft_topk,
)
from etude.losses.dynamic_subspace_learners import (
    DynamicSubspaceEmbedding,
    SubspaceMarginTrainer,
    neuron_scores,
    subspace_margin_loss,
)
from etude.losses.energy_confusion import (
    BinomialDevianceLoss,
    ECAMLLoss,
    energy_confusion,
    energy_distance,
)
from etude.losses.frechet_cumulative_covariance import (
    FCCovLoss,
    FCCovNet,
    fccov,
    metric_responses,
    response_distances,
)
from etude.losses.hyperspherical_novel_class import (
    HypersphereEmbedder,
    NormalizedSoftmaxLoss,
    NovelClassCentroid,
)
from etude.losses.label_dro_loss import ALDRKLLoss, LDRKLLoss
from etude.losses.madacos_retrieval import HardNegativeLocalTriplet, MadaCosLoss, gem_pool
from etude.losses.proto_triplet_icnn import EpisodicTrainer, ICNNLoss, ProtoTripletLoss, icnn_score
from etude.losses.z_loss import FactoredZLoss, ZLoss, spherical_statistics

__all__ = [
    "CNNSVM", "ALDRKLLoss", "BiasLoss", "BinomialDevianceLoss", "CompSumLoss",
    "DecoupledSoftmaxLoss", "DynamicSubspaceEmbedding", "ECAMLLoss", "EpisodicTrainer", "FCCovLoss",
    "FCCovNet", "FactoredZLoss", "HardNegativeLocalTriplet", "HypersphereEmbedder", "ICNNLoss",
    "L2SVMLoss", "LDRKLLoss", "MadaCosLoss", "NormalizedSoftmaxLoss", "NovelClassCentroid",
    "ProtoTripletLoss", "SkipBlock", "SmoothAdversarialCompSumLoss", "SoftTopKLoss",
    "SubspaceMarginTrainer", "ZLoss", "energy_confusion", "energy_distance", "fccov",
    "feature_variance_weight", "gem_pool", "h_consistency_transform", "icnn_score", "log_soft_topk",
    "metric_responses", "neuron_scores", "response_distances", "soft_topk", "spherical_statistics",
    "subspace_margin_loss",
]  # fmt: skip
