r"""ImageRAG: look for a question's phrases among the patches of a huge image, before answering.

A scene of thousands of pixels a side, shrunk to what a model takes, loses what is small in it.
So cut it into patches x_1..x_P, embed all with an encoder of images and texts, and hand only the
patches that answer to the question's key phrases (the cues) to the model, at full size.

Fast path. A phrase's embedding t scores a patch by a softmax over the patches:

    S(t, p) = softmax_p(scale * cos(x_p, t))                                               (1)

Each phrase names its k best patches. Candidates are the k patches named most often (ties: the
one named first) and each phrase's own best; a candidate's confidence is its largest S.    (2)
Cues are the candidates with confidence > threshold, the surest first.                     (3)

Slow path, where no cue is left. A phrase may be a word that the encoder does not know. Then, in
the space of a sentence encoder, it is matched to the labels of a database of labeled images:

    L = labels among a phrase's n nearest with |s - l|^2 <= label_distance                 (4)
    c_l = mean of the unit embeddings of the images of label l in L                        (5)

or the mean of the largest group of them (DBSCAN), or of the three closest to the phrase. The
prototypes c_l take the place of the phrases in (1), without the division by their length, and
in (2); nothing is cut off then. If L is empty, the same is tried with a database of captioned
images; if that fails too, there are no cues. Nothing is trained.

Source: Zhang, Shen, Zhao, Guan, Chen, Wang, Jia, Cai, Shang, Yin, "ImageRAG: Enhancing Ultra
High Resolution Remote Sensing Imagery Analysis with ImageRAG", 2024, arXiv:2411.07688; released
code at commit 517573e, whose settings are the defaults. Its help texts call the threshold a
cosine, but the code compares (1) to it, so it depends on the number of patches; the distance is
squared, as its vector store has it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import softmax

from etude.core import Card, require

__all__ = ["ImageRAG", "Cues", "patchify"]

CARD = Card(
    slug="image_rag",
    family="retrieval",
    title="ImageRAG: Enhancing Ultra High Resolution Remote Sensing Imagery Analysis with ImageRAG",
    year=2024,
    arxiv="2411.07688",
    move="Retrieve the few patches of a huge image that a question's phrases name, through labeled "
    "examples where the encoder does not know the phrase, and answer from those.",
    task="experiment",
    claim="On mosaics of 900 garments, which way a rare garment is turned is told more often from "
    "the cues than from the whole mosaic shrunk to no fewer pixels than the cues have.",
    baseline="resized_scene",
    metric="accuracy",
    better="higher",
    published="abstract: no single figure",
    fidelity="miniature",
    cost="M",
    data=("fashion_mnist_mosaics",),
    code="om-ai-lab/ImageRAG",
    departs=(
        "A small encoder of garments and a classifier stand for CLIP and the language model.",
        "A patch that several phrases put first is one candidate, with the largest of its scores; "
        "the release may list it twice.",
        "Phrases are handed in, and the cues are patches alone; the release lets a language model "
        "find the phrases, and adds the box around all cues (when counting, instead of them).",
        "Reduced by rerank, features are of length 1, too; the release averages its half-precision "
        "ones as they are.",
    ),
)
REDUCTIONS = ("mean", "cluster", "rerank")


class Cues(NamedTuple):
    """patches (C,) int64 numbers of patches, confidence (C,) falling, and the path taken."""

    patches: np.ndarray
    confidence: np.ndarray
    path: str  # "fast", "labels", "captions" or "none"


class ImageRAG:
    """Chooses the patches of a scene that belong to the phrases of a question.

    Args:
        scale: of (1), positive; CLIP's is 100.
        threshold: of (3), on the probability (1): 0 never leaves the fast path, 1 always does.
        label_distance, caption_distance: of (4); below 0 the database is not used.
        k: patches that a phrase names in (2).
        n_neighbors: labels or captions that a phrase may match in (4).
        reduce: "mean", "cluster" or "rerank" in (5).
        radius: of the groups of "cluster", between unit vectors.
    """

    def __init__(
        self,
        *,
        scale: float = 100.0,
        threshold: float = 0.5,
        label_distance: float = 0.7,
        caption_distance: float = 0.7,
        k: int = 2,
        n_neighbors: int = 3,
        reduce: str = "mean",
        radius: float = 0.3,
    ) -> None:
        require(0 < scale < np.inf, "scale", "positive", scale)
        require(0 <= threshold < np.inf, "threshold", "at least 0", threshold)
        for name, far in {"label": label_distance, "caption": caption_distance}.items():
            require(bool(np.isfinite(far)), f"{name}_distance", "a number", far)
        require(k >= 1, "k", "at least 1", k)
        require(n_neighbors >= 1, "n_neighbors", "at least 1", n_neighbors)
        require(reduce in REDUCTIONS, "reduce", f"one of {', '.join(REDUCTIONS)}", reduce)
        require(0 < radius < np.inf, "radius", "positive", radius)
        self.scale, self.threshold, self.k, self.n_neighbors = scale, threshold, k, n_neighbors
        self.label_distance, self.caption_distance = label_distance, caption_distance
        self.reduce, self.radius = reduce, radius

    def fit(
        self,
        vectors: np.ndarray,
        labels: np.ndarray,
        class_embeddings: np.ndarray,
        *,
        captioned: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> ImageRAG:
        """Keep the database of labeled images, and one of captioned images if there is one.

        Args:
            vectors: (N, D) the images, by the encoder of the patches.
            labels: (N,) int64 rows of `class_embeddings`; each occurs.
            class_embeddings: (K, E) the labels' names, by the sentence encoder.
            captioned: the same three arrays with captions for labels.

        Raises:
            EtudeError: lengths or widths that differ, a label without an image, numbers that are
                not finite.
        """
        self.vectors_, self.labels_, self.names_ = _database(vectors, labels, class_embeddings)
        empty = self.vectors_[:0], self.labels_[:0], self.names_[:0]  # matches nothing
        found = empty if captioned is None else _database(*captioned)
        same = all(a.shape[1:] == b.shape[1:] for a, b in zip(found, empty, strict=True))
        require(same, "captioned", "as wide as the labels' database", found[0])
        self.caption_vectors_, self.caption_labels_, self.captions_ = found
        return self

    def query(self, patches: np.ndarray, phrases: np.ndarray, sentences: np.ndarray) -> Cues:
        """The cues of one scene and question; `confidence` is that of (2).

        Args:
            patches: (P, D) embeddings of the scene's patches.
            phrases: (F, D) the phrases in the same space, each the mean of its prompts; of more
                than one, the release adds all in one ("ships, docks, and cranes") at the end.
            sentences: (G, E) the first G <= F of them, by the sentence encoder, for (4).

        Raises:
            EtudeError: not fitted, widths that differ, an empty part, not finite numbers.
        """
        cues = self.fast_path(patches, phrases)
        return cues if len(cues.patches) else self.slow_path(patches, phrases, sentences)

    def fast_path(self, patches: np.ndarray, phrases: np.ndarray) -> Cues:
        """Equations (1) to (3); the path is "fast" even if nothing is left."""
        patches, phrases = _unit("patches", patches), _unit("phrases", phrases)
        found, confidence = self._vote(patches, phrases)
        sure = confidence > self.threshold  # (3)
        return Cues(found[sure], confidence[sure], "fast")

    def slow_path(self, patches: np.ndarray, phrases: np.ndarray, sentences: np.ndarray) -> Cues:
        """Equations (4) and (5), then (1) and (2)."""
        require(hasattr(self, "vectors_"), "ImageRAG", "fitted before it is asked", "no database")
        patches, phrases = _unit("patches", patches), _unit("phrases", phrases)
        sentences = _unit("sentences", sentences)
        named = len(sentences) <= len(phrases)
        require(named, "sentences", f"at most {len(phrases)} rows, one a phrase", sentences)
        captioned = self.caption_vectors_, self.caption_labels_, self.captions_
        for path, (vectors, labels, names), furthest in (
            ("labels", (self.vectors_, self.labels_, self.names_), self.label_distance),
            ("captions", captioned, self.caption_distance),
        ):
            asked_by = self._matches(sentences, names, furthest).items()
            if asked_by:
                found = [self._prototype(vectors[labels == n], phrases[row]) for n, row in asked_by]
                return Cues(*self._vote(patches, np.stack(found)), path)
        return Cues(np.empty(0, np.int64), np.empty(0), "none")

    def _vote(self, patches: np.ndarray, phrases: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(2): candidates and confidences, the surest first."""
        require(
            phrases.shape[1] == patches.shape[1], "patches", f"{phrases.shape[1]} wide", patches
        )
        scores = softmax(self.scale * phrases @ patches.T, axis=1)  # (1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        named, first, votes = np.unique(best.ravel(), return_index=True, return_counts=True)
        most = named[np.lexsort((first, -votes))][: self.k]
        candidates = np.unique(np.concatenate([most, best[:, 0]]))
        among = (best[:, :, None] == candidates).any(axis=1)
        confidence = np.where(among, scores[:, candidates], 0.0).max(axis=0)
        order = np.lexsort((candidates, -confidence))
        return candidates[order], confidence[order]

    def _matches(self, sentences: np.ndarray, names: np.ndarray, far: float) -> dict[int, int]:
        """(4): label -> the last phrase that matched it."""
        if not len(names):
            return {}
        require(names.shape[1] == sentences.shape[1], "sentences", f"{names.shape[1]} wide",
                sentences)  # fmt: skip
        distance = ((sentences[:, None] - names) ** 2).sum(axis=2)
        near = np.argsort(distance, axis=1, kind="stable")[:, : self.n_neighbors]
        rows, places = np.nonzero(np.take_along_axis(distance, near, axis=1) <= far)
        return dict(zip(near[rows, places].tolist(), rows.tolist(), strict=True))

    def _prototype(self, vectors: np.ndarray, phrase: np.ndarray) -> np.ndarray:
        """(5) of one label's unit vectors (n, D)."""
        if self.reduce == "rerank":
            vectors = vectors[np.argsort(-(vectors @ phrase), kind="stable")[:3]]
        if self.reduce == "cluster":
            # DBSCAN of two samples a core: the connected parts of the graph of near pairs
            near = np.linalg.norm(vectors[:, None] - vectors, axis=2) <= self.radius
            group = connected_components(near, directed=False)[1]
            sizes = np.bincount(group)
            if sizes.max() > 1:
                vectors = vectors[group == sizes.argmax()]
        return np.asarray(vectors.mean(axis=0))


def patchify(
    height: int,
    width: int,
    *,
    scheme: str = "grid",
    n_grids: int = 10,
    tile: int = 448,
    n_levels: int = 20,
) -> np.ndarray:
    """(P, 4) int64 boxes (left, top, right, bottom) that cut an image of height x width pixels.

    Args:
        scheme: "grid": all n x n tilings, n = 1..n_grids; "tiles": one tiling in squares of about
            `tile` pixels; "cover": windows that shrink from the whole image by 1/n_levels of it,
            overlapping; of sizes that need equally many windows only the smallest.

    Raises:
        EtudeError: no pixels, an unknown scheme, fewer pixels a side than parts.
    """
    require(min(height, width) >= 1, "height, width", "at least 1 pixel", (height, width))
    require(scheme in ("grid", "tiles", "cover"), "scheme", "grid, tiles or cover", scheme)
    if scheme == "tiles":
        require(tile >= 1, "tile", "at least 1 pixel", tile)
        return _tiling(height, width, -(-height // tile), -(-width // tile))
    parts, name = (n_grids, "n_grids") if scheme == "grid" else (n_levels, "n_levels")
    require(1 <= parts <= min(height, width), name, f"in 1..{min(height, width)}", parts)
    if scheme == "grid":
        return np.concatenate([_tiling(height, width, n, n) for n in range(1, parts + 1)])
    # of a side of `parts` cells of c pixels, windows of m cells start m c - m + 1 pixels apart
    sides = [(side, -(-side // parts)) for side in (height, width)]
    by_count = {}
    for m in range(parts, 0, -1):
        rows, columns = (_windows(side, parts, cell, m) for side, cell in sides)
        by_count[len(rows) * len(columns)] = np.array(
            [(left, top, right, bottom) for top, bottom in rows for left, right in columns]
        )
    return np.concatenate(list(by_count.values()))


def _tiling(height: int, width: int, n_rows: int, n_columns: int) -> np.ndarray:
    down = np.arange(n_rows + 1) * height // n_rows
    right = np.arange(n_columns + 1) * width // n_columns
    row, column = np.divmod(np.arange(n_rows * n_columns), n_columns)
    return np.column_stack([right[column], down[row], right[column + 1], down[row + 1]])


def _windows(side: int, parts: int, cell: int, m: int) -> list[tuple[int, int]]:
    """Windows of m cells over a side of parts * cell pixels, in pixels of the true side."""
    whole, kernel = parts * cell, m * cell
    starts = [*range(0, whole - kernel, kernel - m + 1), whole - kernel]
    return [(a * side // whole, (a + kernel) * side // whole) for a in starts]


def _database(
    vectors: np.ndarray, labels: np.ndarray, names: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    vectors, names, labels = _unit("vectors", vectors), _unit("names", names), np.asarray(labels)
    require(labels.shape == (len(vectors),), "labels", f"({len(vectors)},) int64", labels)
    every = np.array_equal(np.unique(labels), np.arange(len(names)))
    require(every, "labels", f"0..{len(names) - 1}, each at least once", labels)
    return vectors, labels.astype(np.int64), names


def _unit(name: str, values: np.ndarray) -> np.ndarray:
    rows = np.asarray(values, dtype=np.float64)
    require(rows.ndim == 2 and rows.size > 0, name, "(N, D), not empty", rows)
    require(bool(np.isfinite(rows).all()), name, "finite", rows)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
