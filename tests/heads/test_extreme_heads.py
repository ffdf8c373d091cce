"""Every head on features at the edge: finite logits, or an ``EtudeError`` that names them."""

import numpy as np
import pytest
import torch

from etude import heads as library
from etude.core import EtudeError

DIM, CLASSES = 8, 4
TARGET = np.arange(24) % 3


def rows(n=24):
    return np.random.default_rng(0).normal(size=(n, DIM))


def names():
    return np.random.default_rng(1).normal(size=(CLASSES, DIM))


def line():
    """Four labels a step apart."""
    at = np.arange(CLASSES)
    return np.abs(at[:, None] - at).astype(float)


def tensor(x):
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


def transduce(x, y):
    return library.TransductiveClusterer().fit(x, y, x)


HEADS = {
    "naive_bayes": lambda x, y: library.GaussianNBProbe().fit(x, y).logits(x),
    "logistic": lambda x, y: library.LogisticProbe().fit(x, y).logits(x),
    "off_the_shelf": lambda x, y: library.OffTheShelfSVM().fit(x, y).logits(x),
    "one_against_rest": lambda x, y: library.OffTheShelfSVM(multi="ovr").fit(x, y).logits(x),
    "grassmann": lambda x, y: library.GrassmannHead(DIM, CLASSES, subspace_dim=2)(tensor(x)),
    "equiangular": lambda x, y: library.EBVHead(DIM, CLASSES)(tensor(x)),
    "moments": lambda x, y: library.MomentProbe(DIM, CLASSES)(tensor(x)[:, None].repeat(1, 5, 1)),
    "loki": lambda x, y: library.LokiHead(class_distances=line())(tensor(x)[:, :CLASSES]),
    "cache": lambda x, y: library.TFUP(names()).fit(x).logits(x),
    "alignment": lambda x, y: library.S3A(
        class_embeddings=names(), n_clusters=3, n_epochs=2
    ).fit(x).logits(x),
}  # fmt: skip
every = pytest.mark.parametrize("name", HEADS)
DIRECTIONS = ("cache", "alignment")  # heads that see the direction of a row only
FITTED = ("naive_bayes", "logistic", "off_the_shelf", "one_against_rest")


def answer(name, x, y=TARGET):
    """(B, K) finite logits."""
    torch.manual_seed(0)
    found = HEADS[name](x, y)
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    assert found.ndim == 2
    assert len(found) == len(x)
    assert np.isfinite(found).all()
    return found


@every
@pytest.mark.parametrize("scale", [1e4, 1e-8])
def test_large_and_small_features(name, scale):
    found = answer(name, scale * rows())
    if name in (*DIRECTIONS, "naive_bayes"):
        np.testing.assert_array_equal(found.argmax(1), answer(name, rows()).argmax(1))


@every
def test_constant_features(name):
    """Rows that are all alike get one answer."""
    found = answer(name, np.ones((24, DIM)))
    np.testing.assert_allclose(found, np.tile(found[:1], (24, 1)), rtol=1e-5, atol=1e-6)


@every
def test_rows_of_zeros(name):
    """A direction is asked of them where the head needs one."""
    if name in DIRECTIONS:
        with pytest.raises(EtudeError, match="features must be finite, no row zero"):
            answer(name, np.zeros((24, DIM)))
    else:
        answer(name, np.zeros((24, DIM)))


@every
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_low_precision_features_are_as_good(name, dtype):
    found = answer(name, rows().astype(dtype))
    near = answer(name, rows().astype(dtype).astype(np.float64))
    np.testing.assert_allclose(found, near, rtol=2e-3, atol=2e-3)
    answer(name, (1e4 * rows()).astype(np.float16))


@every
def test_one_row_and_one_class(name):
    one = np.zeros(24, dtype=np.int64)
    assert answer(name, rows(), one).shape[1] == (1 if name in FITTED else CLASSES)
    if name == "alignment":
        with pytest.raises(EtudeError, match=r"n_clusters must be in 1\.\.1"):
            answer(name, rows(1), TARGET[:1])
    else:
        answer(name, rows(1), TARGET[:1])


@pytest.mark.parametrize("name", [*FITTED, *DIRECTIONS])
def test_what_is_not_a_number_is_refused(name):
    x = rows()
    x[3, 2] = np.nan
    with pytest.raises(EtudeError, match="features must be finite"):
        answer(name, x)


@pytest.mark.parametrize("name", ["grassmann", "equiangular", "moments", "loki"])
def test_modules_pass_on_what_is_not_a_number(name):
    """So that training stops instead of going on with a made-up logit."""
    x = rows()
    x[3, 2] = np.nan
    torch.manual_seed(0)
    found = HEADS[name](x, TARGET)
    assert torch.isnan(found[3]).any()
    assert torch.isfinite(found[:3]).all()


@pytest.mark.parametrize("name", FITTED)
def test_a_class_never_seen(name):
    """Naive Bayes has no variance for it and refuses; the linear heads never choose it."""
    y = np.where(TARGET == 1, 3, TARGET)
    if name == "naive_bayes":
        with pytest.raises(EtudeError, match="target must be of every class"):
            answer(name, rows(), y)
    else:
        found = answer(name, rows(), y)
        assert found.shape[1] == 4
        assert not (found.argmax(1) == 1).any()


@pytest.mark.parametrize("scale", [1e4, 1.0, 0.0])
def test_transduction(scale):
    fitted = transduce(scale * rows(), TARGET)
    state = [v for k, v in vars(fitted).items() if k.endswith("_")]
    assert state
    assert all(np.isfinite(np.asarray(v, dtype=float)).all() for v in state)
    with pytest.raises(EtudeError, match="support must be finite"):
        transduce(np.nan * rows(), TARGET)
