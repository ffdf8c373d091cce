"""Losses: what the training of a classifier minimizes.

Each is a torch module called with a batch of logits (or embeddings) and its labels.
"""

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
from etude.losses.label_dro_loss import ALDRKLLoss, LDRKLLoss

__all__ = [
    "ALDRKLLoss", "CompSumLoss", "DecoupledSoftmaxLoss", "LDRKLLoss",
    "SmoothAdversarialCompSumLoss", "SoftTopKLoss", "h_consistency_transform", "log_soft_topk",
    "soft_topk",
]  # fmt: skip
