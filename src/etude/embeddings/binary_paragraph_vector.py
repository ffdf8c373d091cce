r"""Binary paragraph vectors: a document's bits are learned by predicting its words from them.

A paragraph vector is a vector per document from which the document's words are predicted. Cutting
it into bits afterwards loses what the cut was never trained for. Here the vector passes a sigmoid
that is rounded to 0 or 1 on the way forward, as if unrounded on the way back, so the code that
predicts the words is the code that is kept and searched by counting unlike bits:

    s_d = sigmoid(v_d),   or sigmoid(A v_d + a) for a longer v_d ("real-binary")           (1)
    b_d = round(s_d) on the way forward,   db/ds = 1 on the way back                       (2)
    p(w | d) = softmax_w(W b_d + c)                                                        (3)
    loss = - sum_(d, w) n_dw log p(w | d) / sum n                                          (4)

n_dw: how often word (or n-gram) w is in d. A new document's bits come from (4) over its v alone,
W, c, A and a frozen. In the real-binary form the bits find a short list, and v_d orders it.

The thesis's second model, the disambiguated skip-gram, gives a word w several senses v_wk:

    q = C^T D_w + b_w,  C the mean of the output vectors of the context, no gradient       (5)
    s = softmax((q + g) / temperature),  g Gumbel noise                                    (6)
    loss = mean CE(U sum_k s_k v_wk + u, context word) + entropy_weight * mean H(softmax q)  (7)

D and b start at zero, so all senses are equally likely at first; a negative entropy_weight keeps
them in use, a positive one prunes them.

Source: Grzegorczyk, "Vector representations of text data in deep learning", thesis, 2019,
arXiv:1901.01695; Grzegorczyk, Kurdziel, "Binary Paragraph Vectors", RepL4NLP 2017,
arXiv:1611.01116; Grzegorczyk, Kurdziel, released code of (5) to (7): kagrze/disgram at 53f9af2.
Not found, for only the abstracts were at hand: how vectors start, optimizer and number of steps of
the binary model (ours: normal vectors, Adam). The figures of the thesis were not checked.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["BinaryPVDBOW", "DisambiguatedSkipGram", "hamming_search"]

CARD = Card(
    slug="binary_paragraph_vector",
    family="embeddings",
    title="Vector representations of text data in deep learning",
    year=2019,
    arxiv="1901.01695",
    move="Predict a document's words from the rounded sigmoids of its vector, so that the bits "
    "that are searched are those that were trained.",
    task="experiment",
    claim="With 128 bits a question finds questions of the same intent with a higher mean average "
    "precision than with the bits of an ordinary paragraph vector by iterative quantization.",
    baseline="itq_bits",
    metric="mean_average_precision",
    better="higher",
    published="abstract of Binary Paragraph Vectors: they outperform autoencoder-based binary "
    "codes with fewer bits; no single figure",
    fidelity="full",
    cost="L",
    data=("banking77",),
    code="kagrze/disgram",
    departs=(
        "Full softmax over the vocabulary in (3) and (7), where the originals sample it.",
        "The skip-gram is the release's second stage; its first, one D for all words, is left out.",
    ),
    example={"n_bits": 8, "n_steps": 3},
)

CODES = ("binary", "sigmoid", "real")
Counts = np.ndarray | scipy.sparse.spmatrix | scipy.sparse.sparray


class BinaryPVDBOW:
    """Bits of documents from counts of their words; (1) to (4).

    Args:
        n_bits: length of a code.
        code: "binary"; "sigmoid" leaves out the rounding (2), "real" the sigmoid, too: that is
            the ordinary paragraph vector.
        real_dim: width of v in the real-binary form; 0 for a v of n_bits numbers, one a bit.
        n_steps, batch_size, lr: Adam's steps, documents a step, and its rate.
        n_infer: steps for new documents, all at once.
        seed: of the starting vectors and of the batches.

    Attributes:
        codes_: (N, n_bits) uint8 bits of the fitted documents; float32 unless "binary".
        vectors_: (N, D) float32 v of the fitted documents.
        words_, word_bias_: W (V, n_bits) and c (V,).
        projection_, projection_bias_: A and a, or None.

    Raises:
        EtudeError: a number out of its range or an unknown code.
    """

    def __init__(
        self, n_bits: int = 128, *, code: str = "binary", real_dim: int = 0, n_steps: int = 600,
        batch_size: int = 128, lr: float = 0.03, n_infer: int = 100, seed: int = 0,
    ) -> None:  # fmt: skip
        counts = {"n_bits": n_bits, "n_steps": n_steps, "batch_size": batch_size}
        for name, number in (counts | {"n_infer": n_infer}).items():
            require(number >= 1, name, "at least 1", number)
        require(code in CODES, "code", f"one of {', '.join(CODES)}", code)
        require(real_dim >= 0, "real_dim", "at least 0", real_dim)
        require(0 < lr < 10, "lr", "in (0, 10)", lr)
        self.n_bits, self.code, self.real_dim, self.n_steps = n_bits, code, real_dim, n_steps
        self.batch_size, self.lr, self.n_infer, self.seed = batch_size, lr, n_infer, seed

    def fit(self, features: Counts) -> BinaryPVDBOW:
        """Learn from (N, V) counts, dense or sparse.

        Raises:
            EtudeError: not counts (negative, NaN or no word at all), or no document.
        """
        counts = _counts(features)
        n, n_words = counts.shape
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, spread: float = 0.1) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * spread)

        width = self.real_dim or self.n_bits
        vectors = normal(n, width)
        shared = [normal(n_words, self.n_bits), nn.Parameter(_log_share(counts))]
        if self.real_dim:
            shared += [normal(self.n_bits, width, spread=width**-0.5), normal(self.n_bits)]
        optimizer = torch.optim.Adam(shared, lr=self.lr)
        # plain Adam would go on moving the documents that are not in the batch
        of_documents = torch.optim.SparseAdam([vectors], lr=self.lr)
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(self.n_steps):
            if len(order) < min(self.batch_size, n):
                order = torch.cat([order, torch.randperm(n, generator=generator)])
            rows, order = order[: self.batch_size], order[self.batch_size :]
            v = F.embedding(rows, vectors, sparse=True)
            loss = self._loss(v, shared, torch.from_numpy(counts[rows.numpy()].toarray()))
            optimizer.zero_grad()
            of_documents.zero_grad()
            loss.backward()
            optimizer.step()
            of_documents.step()
        arrays = [p.detach().numpy() for p in shared] + [None, None]
        self.words_, self.word_bias_, self.projection_, self.projection_bias_ = arrays[:4]
        self.vectors_ = vectors.detach().numpy()
        self.codes_ = self._codes(self.vectors_)
        return self

    def embed(self, features: Counts) -> np.ndarray:
        """(N, V) counts of new documents -> v (N, D) float32, all else frozen.

        Raises:
            EtudeError: not fitted, or counts of another vocabulary.
        """
        require(hasattr(self, "words_"), "this model", "fitted first", type(self).__name__)
        counts = _counts(features)
        require(counts.shape[1] == len(self.words_), "features", f"(N, {len(self.words_)})", counts)
        arrays = (self.words_, self.word_bias_, self.projection_, self.projection_bias_)
        shared = [torch.from_numpy(a) for a in arrays if a is not None]
        found = []
        for start in range(0, counts.shape[0], 1024):
            part = torch.from_numpy(counts[start : start + 1024].toarray())
            v = torch.zeros(len(part), self.real_dim or self.n_bits, requires_grad=True)
            optimizer = torch.optim.Adam([v], lr=self.lr)
            for _ in range(self.n_infer):
                (gradient,) = torch.autograd.grad(self._loss(v, shared, part, each=True), v)
                v.grad = gradient
                optimizer.step()
            found.append(v.detach().numpy())
        return np.concatenate(found)

    def transform(self, features: Counts) -> np.ndarray:
        """(N, V) counts of new documents -> (N, n_bits) codes, as ``codes_``."""
        return self._codes(self.embed(features))

    def _loss(
        self, v: Tensor, shared: list[Tensor], counts: Tensor, *, each: bool = False
    ) -> Tensor:
        """(4); with `each` the sum over documents of their own means, which v cannot tell from
        one document at a time."""
        logp = (self._activations(v, shared[2:]) @ shared[0].T + shared[1]).log_softmax(dim=1)
        loss = -(counts * logp).sum(dim=1)  # (3)
        return (loss / counts.sum(dim=1)).sum() if each else loss.sum() / counts.sum()

    def _activations(self, v: Tensor, projection: list[Tensor]) -> Tensor:
        if projection:
            v = v @ projection[0].T + projection[1]
        if self.code == "real":
            return v
        s = v.sigmoid()  # (1)
        return s + (s.round() - s).detach() if self.code == "binary" else s  # (2)

    def _codes(self, vectors: np.ndarray) -> np.ndarray:
        arrays = [a for a in (self.projection_, self.projection_bias_) if a is not None]
        code = self._activations(torch.from_numpy(vectors), [torch.from_numpy(a) for a in arrays])
        return np.asarray(code.round().byte() if self.code == "binary" else code)


class DisambiguatedSkipGram(nn.Module):
    """Several vectors a word, chosen softly by its context; (5) to (7).

    Args:
        dim: width of a vector.
        n_words, n_senses: V and K.
        temperature: of (6); 1 in evaluation.
        entropy_weight: of (7).
        generator: of starting vectors and noise.

    Raises:
        EtudeError: a number out of its range.
    """

    def __init__(
        self, dim: int = 50, *, n_words: int = 1000, n_senses: int = 5, temperature: float = 1.0,
        entropy_weight: float = 0.0, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, number in {"dim": dim, "n_words": n_words, "n_senses": n_senses}.items():
            require(number >= 1, name, "at least 1", number)
        require(0 < temperature < float("inf"), "temperature", "positive", temperature)
        require(abs(entropy_weight) < float("inf"), "entropy_weight", "finite", entropy_weight)
        self.dim, self.n_words, self.n_senses = dim, n_words, n_senses
        self.temperature, self.entropy_weight = temperature, entropy_weight
        self.generator = generator
        start = torch.rand(n_words, n_senses, dim, generator=generator) - 0.5
        self.senses = nn.Parameter(start / (dim * n_senses))
        self.outputs = nn.Parameter(torch.zeros(n_words, dim))
        self.output_bias = nn.Parameter(torch.zeros(n_words))
        self.disambiguation = nn.Parameter(torch.zeros(n_words, n_senses, dim))
        self.sense_bias = nn.Parameter(torch.zeros(n_words, n_senses))

    def sense_logits(self, words: Tensor, context: Tensor) -> Tensor:
        """words (B,), context (B, C) int64 -> q (B, K)."""
        mean = self.outputs[context].mean(dim=1).detach()  # (5)
        return torch.einsum("bd,bkd->bk", mean, self.disambiguation[words]) + self.sense_bias[words]

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, 1 + C) int64: a word and its C context words -> the scalar (7).

        Raises:
            EtudeError: no context, or ids outside 0..V - 1.
        """
        fits = ids.ndim == 2 and ids.shape[1] > 1 and len(ids) > 0
        require(fits, "ids", "(B, 1 + C) with a context", ids)
        inside = bool(((ids >= 0) & (ids < self.n_words)).all())
        require(inside, "ids", f"in 0..{self.n_words - 1}", ids)
        words, context = ids[:, 0], ids[:, 1:]
        q = self.sense_logits(words, context)
        if self.training:
            noise = torch.rand(q.shape, generator=self.generator, dtype=q.dtype).clamp(min=1e-20)
            share = ((q - (-noise.log()).log()) / self.temperature).softmax(dim=1)  # (6)
        else:
            share = q.softmax(dim=1)
        vector = torch.einsum("bk,bkd->bd", share, self.senses[words])
        logp = (vector @ self.outputs.T + self.output_bias).log_softmax(dim=1)
        p = q.log_softmax(dim=1)
        entropy = -(p.exp() * p).sum(dim=1).mean()
        return -logp.gather(1, context).mean() + self.entropy_weight * entropy  # (7)


def hamming_search(
    queries: np.ndarray, documents: np.ndarray, *, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """(B, n), (N, n) bits -> row numbers and distances (B, min(k, N)), nearest first, then by row.

    Raises:
        EtudeError: not bits, unlike lengths, or k below 1.
    """
    require(k >= 1, "k", "at least 1", k)
    packed = []
    for name, bits in {"queries": queries, "documents": documents}.items():
        bits = np.asarray(bits)
        require(bits.ndim == 2 and np.isin(bits, (0, 1)).all(), name, "(N, n) of 0 and 1", bits)
        packed.append(np.packbits(bits.astype(np.uint8), axis=1))
    require(queries.shape[1] == (n := documents.shape[1]), "queries", f"of {n} bits", queries)
    ids, far = [], []
    for start in range(0, len(queries), 64):
        unlike = packed[0][start : start + 64, None] ^ packed[1][None]
        distance = np.bitwise_count(unlike).sum(axis=2, dtype=np.int64)
        ids.append(np.argsort(distance, axis=1, kind="stable")[:, :k])
        far.append(np.take_along_axis(distance, ids[-1], axis=1))
    empty = np.empty((0, min(k, len(documents))), dtype=np.int64)
    return np.concatenate([empty, *ids]), np.concatenate([empty, *far])


def _counts(features: Counts) -> scipy.sparse.csr_matrix:
    fits = np.ndim(features) == 2 or scipy.sparse.issparse(features)
    require(fits and features.shape[0] >= 1, "features", "(N, V) with a document", features)
    counts = scipy.sparse.csr_matrix(features, dtype=np.float32)
    positive = bool(((counts.data >= 0) & (counts.data < np.inf)).all())
    require(positive, "features", "counts: finite and at least 0", features)
    empty = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel() == 0)
    require(len(empty) == 0, "features", "with a word in every row", f"none in row {empty[:1]}")
    return counts


def _log_share(counts: scipy.sparse.csr_matrix) -> Tensor:
    """c starts at the words' own logarithmic frequencies, so that bits tell the rest."""
    total = np.asarray(counts.sum(axis=0)).ravel() + 1.0
    return torch.from_numpy(np.log(total / total.sum()).astype(np.float32))
