"""Fusion of scores by words and by meaning."""

from __future__ import annotations

import numpy as np

__all__ = ["DEPTH", "fuse"]

DEPTH = 1_000  # documents of each ranking that take part
SHARE = 0.6  # of the meaning in the fused score


def fuse(words: np.ndarray, meaning: np.ndarray | None) -> np.ndarray:
    """(N,) fused scores of BM25 scores and inner products (NaN where there is no vector)."""
    scaled = unit(words)
    if meaning is None:
        return scaled
    known = np.where(np.isnan(meaning), np.nanmin(meaning, initial=1.0), meaning)
    return (1 - SHARE) * scaled + SHARE * unit(known)


def unit(values: np.ndarray) -> np.ndarray:
    """Values moved to 0..1; 0 where all are equal."""
    low, high = float(values.min()), float(values.max())
    scaled: np.ndarray = (values - low) / max(high - low, 1e-9)
    return scaled
