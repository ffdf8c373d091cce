r"""Classify by description: score a class by how well the input fits each of its descriptors.

Zero-shot classification compares an embedding with the embedded name of each class. A name is
short and may be rare. Here a class c has a list D(c) of descriptors d in words; each becomes a
sentence of its own that begins with the name, and the class scores the mean agreement:

    t(c, d) = "{c}, which is d" where d begins with a, an or used,
              "{c}, which d" where it begins with has, often, typically, may or can,
              "{c}, which has d" otherwise                                            (1)
    s(c, x) = 1 / |D(c)| sum_{d in D(c)} cos(x, encode(t(c, d)))                      (2)

The prediction is argmax_c s(c, x). The single cosines are the explanation: which descriptors
the input was found to have. To rewrite D(c) edits the decision, without training. Every sentence
is normalized on its own; the mean of the unit vectors is not normalized again, so descriptors
that disagree make the score of their class small.

Source: Menon and Vondrick, "Visual Classification via Description from Large Language Models",
ICLR 2023, arXiv:2210.07183. The abstract and the authors' release were read; sentence rules and
aggregations are the release's.
Departures: (1) looks at whole first words, the release at first letters ("antennae" becomes
"which is antennae" there, "mayonnaise" becomes "which mayonnaise"); of the 10,183 descriptors
published with it 87 get another sentence. A class without descriptors is scored by its name alone,
where the release embeds "{c}, which has ". No language model is asked: lists are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from etude.core import Card, refuse, require

__all__ = ["DescriptionClassifier", "build_descriptor_prompts"]

CARD = Card(
    slug="classify_by_description",
    family="heads",
    title="Visual Classification via Description from Large Language Models",
    year=2022,
    arxiv="2210.07183",
    move="Score a class by the mean agreement of the input with several written descriptors of "
    "the class instead of with its name, and read the single agreements as the explanation.",
    task="experiment",
    claim="Zero-shot classification of requests in words, by descriptors of each intent, is more "
    "accurate than by the names of the intents in the best of as many prompts.",
    baseline="class_names",
    metric="accuracy",
    better="higher",
    published="The abstract states improvements across ImageNet distribution shifts, without "
    "a figure; the release prints none.",
    fidelity="miniature",
    cost="S",
    data=(),
    code="sachit-menon/classify_by_description_release",
    departs=(
        "Sentences and inputs are texts read by one sentence encoder, not images and texts.",
        "Descriptors are written by hand: no language model is asked.",
        "The rule that joins a descriptor to its class looks at whole words, not at letters.",
        "A class without descriptors is scored by its bare name.",
    ),
    search={"aggregation": ("mean", "max")},
    example={"aggregation": "mean"},
)

Encode = Callable[[Sequence[str]], np.ndarray]
IS, BARE = ("a", "an", "used"), ("has", "often", "typically", "may", "can")
AGGREGATIONS = ("mean", "max", "sum")


def build_descriptor_prompts(
    descriptions: Mapping[str, Sequence[str]], *, with_name: bool = True
) -> dict[str, list[str]]:
    """The sentences (1) of each class; underscores of a name are read as spaces.

    `with_name=False` leaves the class name out, for measuring what descriptors say by themselves.
    """
    prompts = {}
    for name, descriptors in descriptions.items():
        rule = "a sequence of strings for every class"
        require(not isinstance(descriptors, str), "descriptions", rule, descriptors)
        word, sentences = name.replace("_", " "), []
        for text in descriptors:
            require(bool(text.strip()), f"descriptors of {name!r}", "non-empty", text)
            first = text.split()[0].strip(",.;:")
            verb = "which is " if first in IS else "which " if first in BARE else "which has "
            sentences.append(f"{word}, {verb}{text}" if with_name else f"{verb}{text}")
        prompts[name] = sentences or [word]
    return prompts


def _unit(x: np.ndarray, name: str) -> np.ndarray:
    """(N, D) rows of length 1 in float64."""
    x = np.asarray(x, dtype=np.float64)
    require(x.ndim == 2, name, "(N, D)", x)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    require(bool(np.isfinite(x).all() and (length > 0).all()), name, "finite, no row zero", x)
    return np.asarray(x / length)


class DescriptionClassifier:
    """Equation (2) over descriptors in words.

    `aggregation`: "mean" is the method; "max" asks for the best descriptor only, "sum" favors
    classes with long lists. `with_name`: whether sentences begin with the class name.
    After ``describe``: `vectors_` (M, D) unit sentence vectors, `owner_` (M,) class ids, and in
    the same order `sentences` and `descriptors`; `classes` are the names by id.
    """

    def __init__(self, *, aggregation: str = "mean", with_name: bool = True) -> None:
        known = aggregation in AGGREGATIONS
        require(known, "aggregation", f"one of {', '.join(AGGREGATIONS)}", aggregation)
        self.aggregation = aggregation
        self.with_name = with_name

    def describe(
        self, descriptions: Mapping[str, Sequence[str]], encode: Encode
    ) -> DescriptionClassifier:
        """Class name -> its descriptors; encode: M texts -> (M, D), of any length -> self."""
        require(len(descriptions) > 0, "descriptions", "of one class or more", descriptions)
        prompts = build_descriptor_prompts(descriptions, with_name=self.with_name)
        self.classes = list(prompts)
        self.sentences = [text for texts in prompts.values() for text in texts]
        self.descriptors = [d for texts in descriptions.values() for d in (texts or [""])]
        self.owner_ = np.repeat(np.arange(len(prompts)), [len(t) for t in prompts.values()])
        self.vectors_ = _unit(encode(self.sentences), "encode(sentences)")
        require(len(self.vectors_) == len(self.owner_), "encode", "a row a text", self.vectors_)
        return self

    def edit(self, name: str, descriptors: Sequence[str], encode: Encode) -> None:
        """Replace the descriptors of one class; the other classes keep their vectors."""
        at = self._class(name)
        new = build_descriptor_prompts({name: descriptors}, with_name=self.with_name)[name]
        vectors = _unit(encode(new), "encode(sentences)")
        low, high = np.searchsorted(self.owner_, [at, at + 1])
        self.sentences[low:high] = new
        self.descriptors[low:high] = list(descriptors) or [""]
        self.vectors_ = np.concatenate([self.vectors_[:low], vectors, self.vectors_[high:]])
        owner = [self.owner_[:low], np.full(len(new), at), self.owner_[high:]]
        self.owner_ = np.concatenate(owner)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """features (B, D), of any length -> scores (B, K) of (2)."""
        cosines = self._cosines(features)
        starts = np.flatnonzero(np.diff(self.owner_, prepend=-1))
        if self.aggregation == "max":
            return np.asarray(np.maximum.reduceat(cosines, starts, axis=1))
        total = np.add.reduceat(cosines, starts, axis=1)
        return np.asarray(total if self.aggregation == "sum" else total / np.bincount(self.owner_))

    def predict(self, features: np.ndarray) -> np.ndarray:
        """features (B, D) -> (B,) class ids."""
        return np.asarray(self.logits(features).argmax(axis=1))

    def explain(self, features: np.ndarray, name: str) -> list[list[tuple[str, float]]]:
        """For each row the (descriptor, cosine) pairs of one class, the best match first.

        The descriptor of a class without any is "".
        """
        rows = np.flatnonzero(self.owner_ == self._class(name))
        cosines = self._cosines(features)[:, rows]
        return [
            [(self.descriptors[rows[i]], float(row[i])) for i in np.argsort(-row, kind="stable")]
            for row in cosines
        ]

    def _cosines(self, features: np.ndarray) -> np.ndarray:
        rule = "described: call describe first"
        require(hasattr(self, "vectors_"), "classifier", rule, "none")
        features = _unit(features, "features")
        D = self.vectors_.shape[1]
        require(features.shape[1] == D, "features", f"of width {D}, as the texts", features)
        return np.asarray(features @ self.vectors_.T)

    def _class(self, name: str) -> int:
        require(hasattr(self, "vectors_"), "classifier", "described: call describe first", "none")
        if name not in self.classes:
            refuse("name", f"one of the {len(self.classes)} classes", name)
        return self.classes.index(name)
