"""The artifact: a kept winner as a folder that carries its evidence and loads without pickle.

Files: ``model.safetensors`` (arrays), ``config.json`` (how to build the predictor and to read
raw rows), ``card.md`` (what it is, for people; its front matter for programs), ``report.json``
and ``report.html`` (the evidence), ``SHA256SUMS`` (of all the others, in the form of sha256sum).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import etude
from etude.core import EtudeError, require
from etude.lab.row import Row
from etude.lab.rows import encode_rows
from etude.lab.sets import encode_sets, mean_of_sets

__all__ = ["CARD_FIELDS", "FORMAT", "Artifact", "check_free", "load_artifact", "save_artifact"]

FORMAT = 1  # of the folder; a newer one is refused
FILES = ("model.safetensors", "config.json", "card.md", "report.json", "report.html")
SUMS = "SHA256SUMS"
CARD_FIELDS = (
    "title", "arxiv", "method", "task", "metric", "value", "difference", "interval", "verdict",
    "data", "data_hash",
)  # fmt: skip
LARGEST_TEXT = 16 << 20  # bytes of config.json and card.md that are read at most
LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._-]*)")


class Fitted(Protocol):
    """What can be kept: an object that tells its construction and its arrays."""

    def config(self) -> dict[str, Any]:
        """JSON values; "task" names the task."""

    def state(self) -> dict[str, np.ndarray]:
        """Named arrays."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(N, D) float32 -> (N, ...)."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An opened artifact.

    Attributes:
        folder: where it lies. version: the etude that wrote it.
        config: what the predictor's ``config()`` gave. predictor: the fitted method.
        schema, classes: how raw rows become features, and the class names by id.
        card: the front matter of card.md: arXiv id, metric, value, verdict, data, ...
    """

    folder: Path
    version: str
    config: Mapping[str, Any]
    schema: Mapping[str, Any]
    classes: tuple[str, ...]
    card: Mapping[str, Any]
    predictor: Fitted

    def predict(self, rows: Any) -> list[Any]:
        """One answer a row: the class's name where the method classifies, else numbers.

        Args:
            rows: a list of rows, each a list in the order of the columns or a dict by column
                name, or an array (N, D); a list of sets of vectors where it learned from sets.

        Raises:
            EtudeError: a value is absent, of the wrong kind or not finite (row and column are
                named), or the answer is not finite.
        """
        schema = self.schema or {"format": "array", "n_features": self._width(rows)}
        x = (encode_sets if "sets" in schema else encode_rows)(schema, rows)
        if "sets" in schema and not self.config.get("facts", {}).get("given_tokens"):
            x = mean_of_sets(x)
        found = np.asarray(self.predictor.predict(x))
        if np.issubdtype(found.dtype, np.floating) and not np.isfinite(found).all():
            where = int(np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(axis=1))[0])
            raise EtudeError(f"inputs: the answer for row {where + 1} is not a finite number")
        if self.classes and found.ndim == 1 and np.issubdtype(found.dtype, np.integer):
            return [self.classes[i] for i in found]
        answers: list[Any] = found.tolist()
        return answers

    def _width(self, rows: Any) -> int:
        """D where no schema tells it: the predictor's own, else that of the first row."""
        many = (list, tuple, np.ndarray)
        first = rows[0] if isinstance(rows, many) and len(rows) else None
        known = self.config.get("facts", {}).get("dim")
        return int(known or (len(first) if isinstance(first, many) else 1))


def check_free(folder: str | Path) -> Path:
    """The path, if an artifact can be written there: nothing is, or an empty folder.

    Raises:
        EtudeError: a file or a folder with content is there already.
    """
    path = Path(folder).expanduser().absolute()
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise EtudeError(f"{path} must be a new or empty folder, it is a file or a link")
    if path.is_dir() and any(path.iterdir()):
        raise EtudeError(f"{path} must be a new or empty folder, it has content: name another")
    return path


def save_artifact(
    folder: str | Path,
    *,
    predictor: Fitted,
    schema: Mapping[str, Any],
    classes: Sequence[str],
    card: Mapping[str, Any],
    rows: Iterable[Row],
    report_html: str,
) -> Path:
    """Write the folder, whole or not at all.

    Args:
        predictor: ``etude.tasks.restore`` must understand its ``config()`` and ``state()``.
        schema, classes: the data set's, so that raw rows can be answered.
        card: JSON values; at least ``CARD_FIELDS`` (None where there is no such figure).
        rows: the evidence.

    Raises:
        EtudeError: `folder` has content or cannot be written, a card field is absent, or the
            configuration is not JSON or the state not numbers.
    """
    target = check_free(folder)
    absent = [name for name in CARD_FIELDS if name not in card]
    require(not absent, "card", "complete", {"absent": absent})
    facts = {"format": FORMAT, "etude": etude.__version__, "predictor": predictor.config()}
    facts |= {"schema": dict(schema), "classes": list(classes)}
    evidence = {"card": dict(card), "rows": [asdict(row) for row in rows]}
    texts = {
        "config.json": _json(facts, "config", indent=1) + "\n",
        "report.json": _json(evidence, "report", indent=1) + "\n",
        "card.md": _card_text(card),
        "report.html": report_html,
    }
    state = {name: _array(name, array) for name, array in predictor.state().items()}
    draft = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        inner = draft / target.name  # made by mkdir: mkdtemp's own folder is private
        inner.mkdir()
        save_file(state, inner / FILES[0])
        for name, text in texts.items():
            (inner / name).write_text(text, encoding="utf-8", errors="replace", newline="\n")
        (inner / FILES[0]).chmod((inner / "config.json").stat().st_mode)  # safetensors makes 0600
        sums = "".join(f"{_sum(inner / name)}  {name}\n" for name in FILES)
        (inner / SUMS).write_text(sums, encoding="utf-8", newline="\n")
        if target.exists():
            target.rmdir()  # fails if somebody has put a file there meanwhile
        inner.rename(target)
    except OSError as error:
        raise EtudeError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return target


def load_artifact(folder: str | Path) -> Artifact:
    """Open the folder after checking every sum. Hidden files in it are not looked at.

    Raises:
        EtudeError: no artifact, a file is absent, changed or not listed, a newer etude wrote
            it, or its content does not fit together; the message names the file.
    """
    from etude import tasks

    path = Path(folder).expanduser()
    require((path / SUMS).is_file(), str(folder), f"an artifact: a folder with {SUMS}", "none")
    listed = _check_sums(path)
    config = _read(path / "config.json", json.loads)
    version = config.get("format") if isinstance(config, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise EtudeError(f"{path / 'config.json'} must name the artifact's format")
    if version > FORMAT:
        raise EtudeError(
            f"{path} has format {version}, written by etude {config.get('etude')}; this is etude "
            f"{etude.__version__}, which reads formats up to {FORMAT}: upgrade etude"
        )
    for name in FILES:
        require(name in listed, f"{path / name}", f"listed in {SUMS}", "no such line")
    card = _read(path / "card.md", _front_matter)
    try:
        state = load_file(path / FILES[0])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise EtudeError(f"{path / FILES[0]} must be a safetensors file: {error}") from None
    try:
        return Artifact(
            folder=path,
            version=str(config["etude"]),
            config=config["predictor"],
            schema=dict(config["schema"]),
            classes=tuple(map(str, config["classes"])),
            card=card,
            predictor=tasks.restore(config["predictor"], state),
        )
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        raise EtudeError(f"{path / 'config.json'} does not fit this etude: {said}") from None


def _check_sums(path: Path) -> set[str]:
    """The names that SHA256SUMS lists, after comparing every file with its sum."""
    listed: dict[str, str] = {}
    for line in _read(path / SUMS, str.splitlines):
        match = LINE.fullmatch(line)
        if match is None:
            raise EtudeError(f"{path / SUMS}: a line must be a sum and a plain name, got {line!r}")
        listed[match[2]] = match[1]
    for name, expected in listed.items():
        if not (path / name).is_file():
            raise EtudeError(f"{path / name} is missing: copy the whole folder again")
        if _sum(path / name) != expected:
            raise EtudeError(f"{path / name} does not match {SUMS}: it was changed or damaged")
    for found in sorted(path.iterdir()):
        if found.name not in {*listed, SUMS} and not found.name.startswith("."):
            raise EtudeError(f"{found} is not listed in {SUMS}: move it out of the artifact")
    return set(listed)


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """A text file of bounded size, parsed."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TEXT + 1)
        require(len(content) <= LARGEST_TEXT, str(path), f"under {LARGEST_TEXT:,} bytes", "more")
        return parse(content.decode())
    except EtudeError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise EtudeError(f"{path} cannot be read: {error}") from None


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EtudeError(f"{path} cannot be read: {error.strerror}") from None


def _json(value: Any, name: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise EtudeError(f"{name} must be JSON values: {error}") from None


def _array(name: str, array: np.ndarray) -> np.ndarray:
    """The array as safetensors stores it: contiguous numbers."""
    plain = np.asarray(array, order="C")
    require(plain.dtype.kind in "biuf", f"state {name!r}", "an array of numbers", array)
    return plain


def _card_text(card: Mapping[str, Any]) -> str:
    """card.md: each line of the front matter is a name and a JSON value, which YAML reads."""
    facts = {"license": "apache-2.0", "library_name": "etude", "etude": etude.__version__, **card}
    facts["created"] = datetime.now(UTC).isoformat(timespec="seconds")
    front = "".join(f"{name}: {_json(value, 'card')}\n" for name, value in facts.items())
    source = f", arXiv:{card['arxiv']}" if card["arxiv"] else ""
    interval = card["interval"] or "unknown from one seed"
    gain = f"- difference to the baseline: {card['difference']}, interval {interval}\n"
    return (
        f"---\n{front}---\n\n# {card['title']}\n\n"
        f"`{card['method']}`{source}, kept by etude {etude.__version__} for the task "
        f"{card['task']} on {card['data']} (sha256 {card['data_hash']}).\n\n"
        f"- {card['metric']}: {card['value']}\n{'' if card['difference'] is None else gain}"
        f"- verdict: {card['verdict']}\n\n"
        "The evidence is in `report.html` and `report.json`. The license is that of etude; the\n"
        "data's own terms hold for what was learned from it.\n\n"
        '```python\nimport etude\n\netude.load("this folder").predict(rows)\n```\n\n'
        "`etude serve FOLDER` answers over HTTP.\n"
    )


def _front_matter(text: str) -> dict[str, Any]:
    head = text.partition("---\n")[2].partition("\n---\n")[0]
    return {n: json.loads(v) for n, _, v in (line.partition(": ") for line in head.split("\n"))}
