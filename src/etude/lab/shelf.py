"""What data is there: the built-in names, and the folder that ETUDE_DATA names."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etude.core import EtudeError
from etude.lab.builtin import BUILTIN, is_available

__all__ = ["SUFFIXES", "data_folder", "find_data", "list_datasets"]

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz", ".npy")
DEEPEST = 3  # folders below ETUDE_DATA that are looked into
MOST_FOUND = 200


def data_folder() -> Path | None:
    """The folder that ETUDE_DATA names, None where the variable is not set.

    Raises:
        EtudeError: it names something else than a folder.
    """
    folder = os.environ.get("ETUDE_DATA", "")
    if not folder:
        return None
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise EtudeError(f"ETUDE_DATA must name a folder, got {folder!r}")
    return root


def find_data(relative: str) -> Path:
    """The file or folder `relative` under the folder that the variable ETUDE_DATA names.

    Raises:
        EtudeError: ETUDE_DATA is not set or no folder, nothing is there, or the path leads out.
    """
    root = data_folder()
    if root is None:
        raise EtudeError(
            f"{relative} is data that etude does not carry: set the environment variable "
            "ETUDE_DATA to the folder that holds it"
        )
    path = (root / relative).resolve()
    if not path.is_relative_to(root):
        raise EtudeError(f"{relative!r} must lie inside ETUDE_DATA ({root}), it leads to {path}")
    if not path.exists():
        raise EtudeError(f"{relative!r} is not in ETUDE_DATA ({root}): put it there")
    return path


def list_datasets() -> list[dict[str, Any]]:
    """Each data set as {"name", "kind", "rows", "columns", "classes", "what", "source",
    "licence", "available"}; for a file, what is known without reading it whole, else None."""
    listed: list[dict[str, Any]] = [
        {
            "name": item.name, "kind": "built-in", "rows": item.rows, "columns": item.columns,
            "classes": item.classes, "what": item.what, "source": item.source,
            "licence": item.licence, "available": is_available(item.name),
        }
        for item in BUILTIN.values()
    ]  # fmt: skip
    root = data_folder()
    for n, (path, found) in enumerate(() if root is None else walk(root, 0)):
        if n == MOST_FOUND:
            break
        relative = str(path.relative_to(root)) if root else path.name
        listed.append(
            {
                "name": relative, "rows": None, "columns": None, "classes": None, "what": "",
                "source": "ETUDE_DATA", "licence": "", "available": True,
            }
            | found
        )  # fmt: skip
    return listed


def walk(folder: Path, depth: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files and image folders below `folder` that the readers would open, by name."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.is_symlink():
            continue
        if path.is_file() and path.suffix.lower() in SUFFIXES:
            found = peek(path)
            if found:
                yield path, found
        elif path.is_dir():
            names = image_classes(path)
            if len(names) > 1:
                yield path, {"kind": "images", "classes": len(names)}
            elif depth + 1 < DEEPEST:
                yield from walk(path, depth + 1)


def image_classes(folder: Path) -> list[str]:
    """Names of the subfolders that begin with an image."""
    from etude.lab.images import SUFFIXES as IMAGES

    def first(sub: Path) -> str:
        return next((p.suffix.lower() for p in sub.iterdir() if not p.name.startswith(".")), "")

    return [sub.name for sub in folder.iterdir() if sub.is_dir() and first(sub) in IMAGES]


def peek(path: Path) -> dict[str, Any] | None:
    """What the head of the file tells; None where its reader would refuse it at once."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            from etude.lab.tables import read_names

            return {"kind": "csv", "columns": len(read_names(path))}
        if suffix == ".parquet":
            import polars as pl

            return {"kind": "parquet", "columns": len(pl.read_parquet_schema(path))}
        if suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
            return {"kind": "npz"} if names & {"x", "embeddings", "tokens"} else None
        with path.open("rb") as file:
            return {"kind": "npy"} if file.read(6) == b"\x93NUMPY" else None
    except (EtudeError, OSError, zipfile.BadZipFile, ValueError):
        return None
    except Exception as error:  # polars has its own tree of errors
        if type(error).__module__.startswith("polars"):
            return None
        raise
