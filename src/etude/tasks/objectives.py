"""Baseline objectives of the task train."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import require

__all__ = ["CrossEntropy"]


class CrossEntropy(nn.Module):
    """Softmax cross-entropy with label smoothing, in nats, mean over the batch."""

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        require(0 <= smoothing < 1, "smoothing", "in [0, 1)", smoothing)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (B, K), target (B,) int64 -> scalar."""
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)
