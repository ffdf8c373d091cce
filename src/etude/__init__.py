"""etude: Daily Papers that you can run. Find a paper, try it on your data, keep the winner."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etude.lab.artifact import Artifact

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def load(folder: str | Path) -> Artifact:
    """Open the folder that ``etude keep`` wrote: ``.predict(rows)`` answers for raw rows.

    Raises:
        EtudeError: the folder is not an artifact, a sum differs, or a newer etude wrote it.
    """
    from etude.lab.artifact import load_artifact

    return load_artifact(folder)
