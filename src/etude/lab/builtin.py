"""The data sets that are known by a name: four that scikit-learn carries, and Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tempfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.core import EtudeError
from etude.tasks.base import Dataset

__all__ = ["BUILTIN", "Builtin", "is_available", "load_builtin"]


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """What is known of a named data set without reading it."""

    name: str
    rows: int
    columns: int
    classes: int
    what: str
    source: str
    licence: str


BUILTIN: dict[str, Builtin] = {
    item.name: item
    for item in (
        Builtin(name="digits", rows=1797, columns=64, classes=10, what="8 x 8 handwritten digits",
                source="UCI Optical Recognition of Handwritten Digits (test part), by scikit-learn",
                licence="CC BY 4.0"),
        Builtin(name="wine", rows=178, columns=13, classes=3, what="chemistry of three wines",
                source="UCI Wine, by scikit-learn", licence="CC BY 4.0"),
        Builtin(name="breast_cancer", rows=569, columns=30, classes=2,
                what="cell nuclei, malignant or benign",
                source="UCI Breast Cancer Wisconsin (Diagnostic), by scikit-learn",
                licence="CC BY 4.0"),
        Builtin(name="iris", rows=150, columns=4, classes=3, what="sizes of three kinds of iris",
                source="UCI Iris, by scikit-learn", licence="CC BY 4.0"),
        Builtin(name="fashion_mnist", rows=70_000, columns=784, classes=10,
                what="28 x 28 pictures of clothes",
                source="Zalando Research, by Debian's dataset-fashion-mnist or GitHub",
                licence="MIT"),
    )
}  # fmt: skip

CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
    "Ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
OFFICIAL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
LARGEST = 32 << 20  # bytes of one file of Fashion-MNIST, compressed, that are read at most
WAIT_S = 20.0
# Train, then test: images, labels, rows; the sums are of the official files (Debian's are equal).
PARTS = (
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
)
SUMS = {
    "train-images-idx3-ubyte.gz":
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz":
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz":
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz":
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}  # fmt: skip


def load_builtin(name: str) -> Dataset:
    """The named data set, without its hash.

    Raises:
        EtudeError: `name` is not in ``BUILTIN``, or Fashion-MNIST is neither installed nor
            downloadable.
    """
    if name not in BUILTIN:
        raise EtudeError(f"{name!r} is no built-in data set; there are {', '.join(BUILTIN)}")
    return fashion_mnist() if name == "fashion_mnist" else from_sklearn(name)


def is_available(name: str) -> bool:
    """Whether the named data set can be loaded without a network."""
    if name != "fashion_mnist":
        return name in BUILTIN
    return all((DEBIAN / f).is_file() or (cache_folder() / f).is_file() for f in SUMS)


def from_sklearn(name: str) -> Dataset:
    """One of the small tables that scikit-learn's wheel contains."""
    from sklearn import datasets

    bunch: Any = getattr(datasets, f"load_{name}")()
    x = np.asarray(bunch.data, dtype=np.float32)
    why = "measured number"
    if name == "digits":
        x, why = x / np.float32(16), "pixel, scaled from 0..16 to [0, 1]"
    columns = [{"name": str(c), "kind": "number", "why": why} for c in bunch.feature_names]
    return Dataset(
        name=name,
        x=x,
        y=np.asarray(bunch.target, dtype=np.int64),
        classes=tuple(str(label) for label in bunch.target_names),
        image_shape=(1, 8, 8) if name == "digits" else None,
        schema={"format": "table", "columns": columns, "target": "target"},
    )


def fashion_mnist() -> Dataset:
    """All 70,000 pictures, the 60,000 of the train part first; pixels in [0, 1]."""
    images, labels = [], []
    for image_file, label_file, rows in PARTS:
        images.append(read_idx(fashion_file(image_file), (rows, 28, 28)))
        labels.append(read_idx(fashion_file(label_file), (rows,)))
    x = np.concatenate(images).reshape(-1, 784).astype(np.float32)
    x /= np.float32(255)
    return Dataset(
        name="fashion_mnist",
        x=x,
        y=np.concatenate(labels).astype(np.int64),
        classes=CLOTHES,
        image_shape=(1, 28, 28),
        schema={
            "format": "array", "n_features": 784, "target": "label",
            "why": "pixels, scaled from 0..255 to [0, 1]",
        },
    )  # fmt: skip


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an idx file packed by gzip; no more is unpacked than `shape` needs."""
    header = 4 + 4 * len(shape)
    size = header + int(np.prod(shape))
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise EtudeError(
            f"{path}: not readable as a gzip file ({error}); install it anew"
        ) from None
    if len(content) != size or struct.unpack(f">{len(shape)}I", content[4:header]) != shape:
        raise EtudeError(f"{path} must hold an idx array of shape {shape}; install it anew")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/etude``, by default ``~/.cache/etude``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "etude" / "fashion-mnist"


def fashion_file(name: str) -> Path:
    """The file of Debian's package, else of the cache, else downloaded into the cache."""
    for path in (DEBIAN / name, cache_folder() / name):
        if path.is_file():
            return path
    return download(f"{OFFICIAL}/{name}", cache_folder() / name, SUMS[name])


def download(url: str, path: Path, sha256: str) -> Path:
    """Fetch at most ``LARGEST`` bytes, check the sum, and only then give the file its name."""
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            content = answer.read(LARGEST + 1)
    except OSError as error:
        raise EtudeError(
            f"fashion_mnist is not on this machine and {url} did not answer ({error}); "
            "install it: apt-get install dataset-fashion-mnist"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EtudeError(
            f"{url} must have sha256 {sha256[:12]}, got {found[:12]}; "
            "install it: apt-get install dataset-fashion-mnist"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
    return path
