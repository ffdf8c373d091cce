"""Heads: what reads the features of a frozen or trained network, in place of a linear layer.

Fixed vectors, subspaces, moments, averages, neighbors and descriptions of classes.
"""

from etude.heads.classify_by_description import DescriptionClassifier, build_descriptor_prompts
from etude.heads.equiangular_basis_vectors import EBVHead, EBVLoss, generate_ebv
from etude.heads.grassmann_head import (
    GrassmannHead,
    GrassmannProbe,
    GrassmannSGD,
    grassmann_retract,
)
from etude.heads.laplacian_transductive_clustering import TransductiveClusterer, bound_update
from etude.heads.loki_frechet_mean import LokiHead, locus, next_class_selection, tree_metric
from etude.heads.moment_probing import PSRP, MomentProbe, MultiHeadCrossCovariance
from etude.heads.naive_bayes_probe import GaussianNBProbe, LogisticProbe, sample_complexity_curve
from etude.heads.off_the_shelf_features import (
    OffTheShelfRetriever,
    OffTheShelfSVM,
    pca_whiten,
    signed_sqrt,
)
from etude.heads.self_structural_alignment import S3A, cvpr_align
from etude.heads.tfup_cache import (
    TFUP,
    TFUPT,
    FeatureCacheModel,
    marginal_entropy_loss,
    multilevel_similarity,
)

__all__ = [
    "PSRP",
    "S3A",
    "TFUP",
    "TFUPT",
    "DescriptionClassifier",
    "EBVHead",
    "EBVLoss",
    "FeatureCacheModel",
    "GaussianNBProbe",
    "GrassmannHead",
    "GrassmannProbe",
    "GrassmannSGD",
    "LogisticProbe",
    "LokiHead",
    "MomentProbe",
    "MultiHeadCrossCovariance",
    "OffTheShelfRetriever",
    "OffTheShelfSVM",
    "TransductiveClusterer",
    "bound_update",
    "build_descriptor_prompts",
    "cvpr_align",
    "generate_ebv",
    "grassmann_retract",
    "locus",
    "marginal_entropy_loss",
    "multilevel_similarity",
    "next_class_selection",
    "pca_whiten",
    "sample_complexity_curve",
    "signed_sqrt",
    "tree_metric",
]
