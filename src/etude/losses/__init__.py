"""Losses: what the training of a classifier minimizes.

Each is a torch module called with a batch of logits (or embeddings) and its labels.
"""

from etude.losses.comp_sum_loss import (
    CompSumLoss,
    SmoothAdversarialCompSumLoss,
    h_consistency_transform,
)

__all__ = ["CompSumLoss", "SmoothAdversarialCompSumLoss", "h_consistency_transform"]
