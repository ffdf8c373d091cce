"""ImageRAG against slow loops in float64, its limits, and the released code.

Released code: om-ai-lab/ImageRAG at 517573e. Its ranking and threshold (codebase/utils.py) and
its prototypes and slow ranking were run on 200 and on 60 draws for each of the three reductions
(12 patches, 3 and 2 phrases, scale 10): the same patches, confidences equal to 1e-4. The numbers
below are those of default_rng(0), normal(size=(12, 5)) patches then (3, 5) phrases, as float32,
threshold 0.2. Its cover (codebase/patchify/patchify.py) gave our boxes in our order for images of
560 x 840, 603 x 411, 100 x 64 and 2000 x 1500 pixels.
"""

from collections import Counter

import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from etude.core import EtudeError
from etude.retrieval import ImageRAG, patchify

RELEASED = {0: 0.8198885917663574, 1: 0.7146828174591064, 9: 0.5830074548721313}


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def slow_vote(patches, phrases, scale, k):
    votes, confidence, firsts = Counter(), {}, []
    for phrase in phrases:
        weights = [np.exp(scale * float(unit(x) @ phrase)) for x in patches]
        scores = [w / sum(weights) for w in weights]
        named = sorted(range(len(patches)), key=lambda p: -scores[p])[:k]
        firsts.append(named[0])
        for p in named:
            votes[p] += 1
            confidence[p] = max(confidence.get(p, 0), scores[p])
    kept = {p for p, _ in votes.most_common(k)} | set(firsts)
    return {p: confidence[p] for p in kept}


@pytest.mark.parametrize("k", [1, 2, 4])
def test_candidates_and_confidences_are_those_of_loops(k):
    for seed in range(20):
        patches, phrases = draw(seed, 9, 4), draw(100 + seed, 4, 4)
        want = slow_vote(patches, unit(phrases), 7.0, k)
        cues = ImageRAG(scale=7.0, threshold=0.0, k=k).fast_path(patches, phrases)
        assert dict(zip(cues.patches.tolist(), cues.confidence, strict=True)) == pytest.approx(want)
        assert (np.diff(cues.confidence) <= 0).all()


def test_same_as_the_released_code():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(12, 5)).astype(np.float32)
    phrases = rng.normal(size=(3, 5)).astype(np.float32)
    cues = ImageRAG(scale=10.0, threshold=0.2).fast_path(patches, phrases)
    assert cues.patches.tolist() == list(RELEASED)
    np.testing.assert_allclose(cues.confidence, list(RELEASED.values()), rtol=1e-5)


def database(seed=3):
    centers = draw(seed, 3, 4)
    vectors = np.repeat(centers, 5, axis=0) + 0.2 * draw(seed + 1, 15, 4)
    return vectors, np.repeat(np.arange(3), 5), unit(draw(seed + 2, 3, 6))


def test_a_threshold_of_0_stays_on_the_fast_path_and_of_1_leaves_it():
    patches, phrases = draw(0, 20, 4), draw(1, 2, 4)
    names = database()[2]
    stay = ImageRAG(threshold=0.0).fit(*database()).query(patches, phrases, names[:1])
    leave = ImageRAG(threshold=1.0).fit(*database()).query(patches, phrases, names[:1])
    assert (stay.path, leave.path) == ("fast", "labels")
    # even a patch that alone has all the probability is not above 1
    assert len(ImageRAG(threshold=1.0).fast_path(patches[:1], phrases).patches) == 0


def test_copies_of_every_patch_halve_the_confidence_and_may_change_the_path():
    patches, phrases = draw(0, 20, 4), draw(1, 1, 4)
    once = ImageRAG(scale=30.0, threshold=0.0).fast_path(patches, phrases)
    twice = ImageRAG(scale=30.0, threshold=0.0).fast_path(np.tile(patches, (2, 1)), phrases)
    assert twice.confidence[0] == pytest.approx(once.confidence[0] / 2)
    between = 0.75 * once.confidence[0]
    rag = ImageRAG(scale=30.0, threshold=between)
    assert len(rag.fast_path(patches, phrases).patches) == 1
    assert len(rag.fast_path(np.tile(patches, (2, 1)), phrases).patches) == 0


def test_an_example_equal_to_a_patch_puts_that_patch_first():
    patches, names = draw(0, 20, 4), database()[2]
    rag = ImageRAG(threshold=1.0).fit(patches[[7, 2, 11]] * 3, np.arange(3), names)
    # the phrase itself means nothing to the encoder; its sentence is the second label's name
    cues = rag.query(patches, draw(9, 1, 4), names[1:2] * 5)
    assert (cues.path, cues.patches[0]) == ("labels", 2)


@pytest.mark.parametrize("reduce", ["mean", "cluster", "rerank"])
def test_prototypes_are_those_of_loops(reduce):
    vectors, labels, names = database()
    vectors[:2] = draw(5, 2, 4)  # strays among the first label's
    patches, phrases = draw(0, 20, 4), draw(1, 2, 4)
    rag = ImageRAG(reduce=reduce, label_distance=0.01, scale=9.0).fit(vectors, labels, names)
    cues = rag.slow_path(patches, phrases, names[[0, 2]])
    prototypes = []
    for label, phrase in ((0, phrases[0]), (2, phrases[1])):
        own = unit(vectors[labels == label])
        if reduce == "rerank":
            own = np.stack(sorted(own, key=lambda x: -float(x @ unit(phrase)))[:3])
        if reduce == "cluster":
            found = DBSCAN(eps=0.3, min_samples=2).fit(own).labels_
            kept, counts = np.unique(found[found >= 0], return_counts=True)
            own = own[found == kept[counts.argmax()]] if len(kept) else own
        prototypes.append(sum(own) / len(own))
    want = slow_vote(patches, prototypes, 9.0, 2)
    assert dict(zip(cues.patches.tolist(), cues.confidence, strict=True)) == pytest.approx(want)


def test_the_distance_is_squared_and_its_bound_counts():
    names = unit(draw(0, 3, 6))
    sentence = names[:1] + 0.3 * draw(1, 1, 6)
    distance = ((unit(sentence) - names[0]) ** 2).sum()
    vectors, labels, _ = database()
    for furthest, path in ((distance + 1e-9, "labels"), (distance - 1e-9, "none")):
        rag = ImageRAG(label_distance=furthest, n_neighbors=1).fit(vectors, labels, names)
        assert rag.slow_path(draw(2, 5, 4), draw(3, 1, 4), sentence).path == path


def test_captions_come_after_labels_and_no_match_gives_no_cues():
    vectors, labels, names = database()
    patches, phrases, sentences = draw(0, 20, 4), draw(1, 1, 4), names[:1]
    both = {"captioned": (vectors[::-1], labels, names)}
    for label, caption, path in ((0.1, 0.1, "labels"), (-1, 0.1, "captions"), (-1, -1, "none")):
        rag = ImageRAG(threshold=1.0, label_distance=label, caption_distance=caption)
        cues = rag.fit(vectors, labels, names, **both).query(patches, phrases, sentences)
        assert cues.path == path
        assert (len(cues.patches) == 0) == (path == "none")
    # reversed rows: label 0 of the captions has the vectors of label 2
    other = ImageRAG(threshold=1.0, label_distance=0.1, n_neighbors=1)
    same = other.fit(vectors, labels, names).query(patches, phrases, names[2:])
    rag = ImageRAG(threshold=1.0, label_distance=-1, n_neighbors=1).fit(*database(), **both)
    np.testing.assert_array_equal(rag.query(patches, phrases, sentences)[0], same[0])


def test_every_tiling_covers_each_pixel_once():
    boxes = patchify(23, 31, n_grids=4)
    assert len(boxes) == 1 + 4 + 9 + 16
    start = 0
    for n in range(1, 5):
        count = np.zeros((23, 31), int)
        for left, top, right, bottom in boxes[start : start + n * n]:
            count[top:bottom, left:right] += 1
        assert (count == 1).all()
        start += n * n
    tiles = patchify(60, 84, scheme="tiles", tile=28)
    assert len(tiles) == 3 * 3
    assert tiles[1].tolist() == [28, 0, 56, 20]


def test_the_cover_is_the_released_one():
    boxes = patchify(560, 840, scheme="cover")
    assert (len(boxes), int(boxes.sum())) == (661, 951798)
    assert boxes[0].tolist() == [0, 0, 840, 560]
    assert boxes[-1].tolist() == [798, 532, 840, 560]
    other = patchify(1500, 2000, scheme="cover")
    assert (len(other), int(other.sum())) == (661, 2385993)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"threshold": -0.1}, "threshold must be at least 0"),
        ({"label_distance": np.nan}, "label_distance must be a number"),
        ({"k": 0}, "k must be at least 1"),
        ({"n_neighbors": 0}, "n_neighbors must be at least 1"),
        ({"reduce": "median"}, "reduce must be one of mean, cluster, rerank"),
        ({"radius": 0.0}, "radius must be positive"),
    ],
)
def test_refusals_of_knobs(knobs, message):
    with pytest.raises(EtudeError, match=message):
        ImageRAG(**knobs)


def test_refusals_of_data():
    vectors, labels, names = database()
    rag = ImageRAG(threshold=1.0)
    with pytest.raises(EtudeError, match="fitted before it is asked"):
        rag.query(vectors, vectors[:1], names[:1])
    with pytest.raises(EtudeError, match=r"labels must be 0\.\.2, each at least once"):
        rag.fit(vectors, np.zeros(15, int), names)
    with pytest.raises(EtudeError, match="captioned must be as wide"):
        rag.fit(vectors, labels, names, captioned=(vectors[:, :2], labels, names))
    rag.fit(vectors, labels, names)
    with pytest.raises(EtudeError, match="patches must be 3 wide"):
        rag.query(vectors, vectors[:1, :3], names[:1])
    with pytest.raises(EtudeError, match="patches must be finite"):
        rag.query(np.full((2, 4), np.nan), vectors[:1], names[:1])
    with pytest.raises(EtudeError, match="sentences must be at most 1 rows"):
        rag.query(vectors, vectors[:1], names)
    with pytest.raises(EtudeError, match="sentences must be 6 wide"):
        rag.query(vectors, vectors[:1], names[:1, :5])
    with pytest.raises(EtudeError, match="scheme must be grid, tiles or cover"):
        patchify(10, 10, scheme="hexagons")
    with pytest.raises(EtudeError, match=r"n_grids must be in 1\.\.5"):
        patchify(5, 10)
