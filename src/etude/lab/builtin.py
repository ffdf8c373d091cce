"""The data sets that are known by a name: four that scikit-learn carries, and Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
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
    target: str = "class"


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
INSTALL = "install it: apt-get install dataset-fashion-mnist"
# Train, then test: images, labels, rows.
PARTS = (
    ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", 60_000),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", 10_000),
)
# Of the unpacked bytes: Debian packs the official content anew, without the files' names.
SUMS = {
    "train-images-idx3-ubyte.gz":
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz":
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz":
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz":
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
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
    columns = [
        {"name": str(c), "kind": "number", "why": why, "width": 1} for c in bunch.feature_names
    ]
    return Dataset(
        name=name,
        x=x,
        y=np.asarray(bunch.target, dtype=np.int64),
        classes=tuple(str(label) for label in bunch.target_names),
        image_shape=(1, 8, 8) if name == "digits" else None,
        schema={"format": "table", "columns": columns, "target": "class"},
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
            "format": "array", "n_features": 784, "target": "class",
            "range": [0, 1], "why": "pixels, scaled from 0..255 to [0, 1]",
        },
    )  # fmt: skip


def read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The uint8 array of an idx file packed by gzip, its content checked by sum."""
    header = 4 + 4 * len(shape)
    content = unpack(path, header + math.prod(shape), SUMS[path.name])
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def unpack(path: Path, size: int, sha256: str) -> bytes:
    """The `size` bytes that the gzip file holds; no more is unpacked than one byte over them."""
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise EtudeError(f"{path} must be a whole gzip file ({error}); {INSTALL}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise EtudeError(f"{path} must unpack to sha256 {sha256[:12]}, got {found[:12]}; {INSTALL}")
    return content


def cache_folder() -> Path:
    """Where downloads are kept: ``$XDG_CACHE_HOME/etude``, by default ``~/.cache/etude``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "etude" / "fashion-mnist"


def fashion_file(name: str) -> Path:
    """The file of Debian's package, else of the cache, else downloaded into the cache."""
    for path in (DEBIAN / name, cache_folder() / name):
        if path.is_file():
            return path
    return download(f"{OFFICIAL}/{name}", cache_folder() / name)


def download(url: str, path: Path) -> Path:
    """Fetch at most ``LARGEST`` bytes; the file gets its name when it is complete."""
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            content = answer.read(LARGEST + 1)
    except (OSError, http.client.HTTPException) as error:
        raise EtudeError(
            f"fashion_mnist is not on this machine and {url} did not answer ({error}); {INSTALL}"
        ) from None
    if len(content) > LARGEST:
        raise EtudeError(f"{url} must be at most {LARGEST >> 20} MB, it is larger; {INSTALL}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        fresh.write_bytes(content)
        rows = next(n for *names, n in PARTS if path.name in names)
        size = 16 + 784 * rows if "images" in path.name else 8 + rows
        unpack(fresh, size, SUMS[path.name])
        fresh.replace(path)
    return path
