"""The one vocabulary: what a parameter name means, wherever in the library it stands.

A task wires a method by these names: it reads the parameter names of the constructor and of
the call, and hands over the facts of the data and the tensors of the step that they ask for.
Shapes: B batch, T tokens, N items, M candidates, D width, K classes, L layers; masks are bool,
True = keep.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from etude.core.errors import EtudeError

__all__ = ["FACTS", "KNOBS", "SYNONYMS", "TENSORS", "check_names"]

FACTS: dict[str, str] = {
    "dim": "width D of the features or embeddings that the method receives",
    "n_classes": "number K of classes",
    "n_nodes": "number of nodes of a graph",
    "n_tokens": "number T of tokens of a sample",
    "class_counts": "(K,) training examples per class",
    "class_embeddings": "(K, D) one embedding a class (from names or descriptions)",
    "class_distances": "(K, K) the label metric: distances between classes",
    "generator": "torch.Generator or numpy Generator: all randomness of the method",
    "seed": "integer seed of the method's own randomness",
}
TENSORS: dict[str, str] = {
    "x": "(B, ...) input samples",
    "y": "(B,) float regression target",
    "features": "(B, D) frozen features, one row a sample",
    "tokens": "(B, T, D) frozen token features of a sample",
    "layer_features": "list over layers of (B, D_l) features",
    "logits": "(B, K) unnormalized scores, a softmax away from probabilities",
    "probs": "(B, K) probabilities",
    "scores": "(B, M) similarities or scores, unnormalized",
    "target": "(B,) int64 class ids",
    "positives": "(B, K) bool, True where the label belongs to the sample",
    "embeddings": "(B, D) representations",
    "labels": "(B,) int64 group ids: equal ids belong together",
    "ids": "(B, F) int64 values of F categorical features, or words of a text, one a column",
    "indices": "(B,) int64 positions of the samples in the training set",
    "mask": "bool, True = keep",
    "vectors": "(N, D) float vectors of a collection",
    "queries": "(B, D) float query vectors, or a sequence of (T, D) token sets",
    "query_bank": "(Q, M) scores of a bank of training queries and the same M candidates",
    "gallery_bank": "(G, M) scores of a bank of training items and the same M candidates",
    "documents": "(N, D) float vectors, or a sequence of (T, D) token sets",
    "cooccurrence": "(N, N) counts, array or scipy sparse: how often a word stands beside another",
    "adjacency": "(N, N) scipy sparse matrix, the edges of a graph",
    "support": "(S, D) labeled features of an episode",
    "support_labels": "(S,) int64 class ids of the support",
    "query": "(Q, D) features to classify in an episode",
    "anchor": "(B, D) anchors of pairs or triplets",
    "anchors": "(A, D) fixed samples, as the encoder sees them, that others are described by",
    "positive": "(B, D) positives of pairs or triplets",
    "negative": "(B, D) negatives of pairs or triplets",
    "student_logits": "(B, K) logits of the network that learns",
    "teacher_logits": "(B, K) logits of the network that teaches",
    "q": "(B, h, T, D) attention queries",
    "k": "(B, h, T, D) attention keys",
    "v": "(B, h, T, D) attention values",
    "network": "a callable network that the method calls itself",
}
KNOBS: dict[str, str] = {
    "temperature": "logits are divided by it",
    "scale": "logits are multiplied by it",
    "margin": "margin, in the unit that the docstring states",
    "smoothing": "label smoothing",
    "eps": "numerical guard only",
    "hidden_dim": "width of a hidden layer",
    "rank": "a low rank",
    "depth": "number of layers",
    "n_heads": "number of heads",
    "n_steps": "number of optimization steps",
    "lr": "learning rate",
    "weight_decay": "weight decay",
}
SYNONYMS: dict[str, str] = {
    "num_heads": "n_heads", "n_head": "n_heads", "heads": "n_heads", "nhead": "n_heads",
    "num_classes": "n_classes", "classes": "n_classes", "k_classes": "n_classes",
    "num_steps": "n_steps", "steps": "n_steps", "iterations": "n_steps", "n_iter": "n_steps",
    "learning_rate": "lr", "label_smoothing": "smoothing", "T": "temperature",
    "softmax_scale": "scale", "embedding_dim": "dim", "d": "dim", "in_dim": "dim",
    "in_features": "dim", "targets": "target", "pred": "logits", "preds": "logits",
    "output": "logits", "outputs": "logits", "inp": "x", "random_state": "seed",
    "rng": "generator", "counts": "class_counts", "hid": "hidden_dim", "nlayers": "depth",
    "n_layers": "depth", "num_layers": "depth", "adj": "adjacency", "attn_mask": "mask",
}  # fmt: skip


def check_names(method: Callable[..., object], *, known: set[str] | None = None) -> None:
    """Refuse a parameter that no task can hand over, or that has another name here.

    Every parameter without a default must be a fact or a tensor of the vocabulary; any
    parameter whose idea has a name here must use it.

    Raises:
        EtudeError: names the method, the parameter and the word to use.
    """
    words = (set(FACTS) | set(TENSORS)) if known is None else known
    name = getattr(method, "__qualname__", repr(method))
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise EtudeError(f"{name} takes open {parameter}: name every parameter instead")
        if parameter.name in SYNONYMS:
            raise EtudeError(
                f"{name}({parameter.name}): the vocabulary calls this {SYNONYMS[parameter.name]!r}"
            )
        required = parameter.default is parameter.empty and parameter.name != "self"
        if required and parameter.name not in words:
            raise EtudeError(
                f"{name}({parameter.name}): not in the vocabulary, so no task can hand it over; "
                "use a name of etude.core.vocabulary or give it a default"
            )
