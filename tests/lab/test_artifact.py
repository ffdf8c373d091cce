"""The artifact: what is written, that it comes back, and every way in which it is refused."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import etude
from etude import tasks
from etude.core import EtudeError
from etude.lab.artifact import FILES, FORMAT, check_free, load_artifact, save_artifact
from etude.lab.row import Row

CARD = {
    "title": "Two: a «paper»\nwith a break --- and #", "arxiv": "2405.19504",
    "method": "heads.fake", "task": "probe", "metric": "accuracy", "value": 0.9,
    "difference": 0.02, "interval": [0.01, 0.03], "verdict": "better", "data": "toy",
    "data_hash": "ab" * 32,
}  # fmt: skip
ROW = Row(
    run="r", method="heads.fake", arm="ours", task="probe", data="toy", data_hash="ab",
    split="test", seed=0, metric="accuracy", value=0.9, unit="share", fit_s=0.1, infer_s=0.1,
    bytes=8, status="ok", params={"C": 1.0}, setting="tuned", config_hash="c", version="0.1.0",
    machine="m", at="2026-11-22T10:00:01+00:00",
)  # fmt: skip
SCHEMA = {
    "format": "table", "target": "kind",
    "columns": [
        {"name": "length", "kind": "number", "width": 1},
        {"name": "color", "kind": "category", "width": 2, "categories": ["red", "blue"]},
    ],
}  # fmt: skip


class Fake:
    """Class 1 where the inner product with the weight is positive; or the product itself."""

    def __init__(self, config: dict, state: dict) -> None:
        self._config, self._state = config, state

    def config(self) -> dict:
        return self._config

    def state(self) -> dict:
        return self._state

    def predict(self, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32
        found = x @ self._state["method.weight"]
        return (found > 0).astype(np.int64) if self._config["knobs"]["classify"] else found


def fake(classify: bool = True, width: int = 3, **more: np.ndarray) -> Fake:
    config = {"task": "probe", "arm": "fake", "facts": {"dim": width}, "knobs": {}}
    config["knobs"] = {"classify": classify}
    return Fake(config, {"method.weight": np.arange(1, width + 1) - 2.5, **more})


def save(folder: Path, predictor: Fake | None = None, **changes: object) -> Path:
    words: dict = {
        "schema": SCHEMA, "classes": ("no", "yes"), "card": CARD, "rows": [ROW],
        "report_html": "<p>é</p>",
    }  # fmt: skip
    return save_artifact(folder, predictor=predictor or fake(), **(words | changes))


def sign(folder: Path) -> None:
    """Write the sums anew: somebody who changes a file can do this too."""
    names = sorted(p.name for p in folder.iterdir() if p.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    sign(folder)


@pytest.fixture(autouse=True)
def restorable(monkeypatch) -> None:
    """`Fake` is what the tasks build."""
    monkeypatch.setattr(tasks, "restore", lambda config, state: Fake(dict(config), state))


@pytest.fixture
def kept(tmp_path) -> Path:
    return save(tmp_path / "kept")


def test_all_files_are_there_and_say_what_was_given(kept) -> None:
    assert {p.name for p in kept.iterdir()} == {*FILES, "SHA256SUMS"}
    assert json.loads((kept / "config.json").read_text())["predictor"] == fake().config()
    evidence = json.loads((kept / "report.json").read_text())
    assert evidence == {"card": CARD, "rows": [asdict(ROW)]}
    assert (kept / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    np.testing.assert_array_equal(
        load_file(kept / "model.safetensors")["method.weight"], [-1.5, -0.5, 0.5]
    )
    _, front, body = (kept / "card.md").read_text(encoding="utf-8").split("---\n", 2)
    assert 'arxiv: "2405.19504"\n' in front
    assert "interval: [0.01, 0.03]\n" in front
    assert 'license: "apache-2.0"\n' in front
    assert "- difference to the baseline: 0.02, interval [0.01, 0.03]\n- verdict: better" in body
    assert not any(p.stat().st_mode & 0o077 == 0 for p in [kept, *kept.iterdir()])
    assert [p.name for p in kept.parent.iterdir()] == ["kept"]


def test_sums_are_those_of_sha256sum(kept) -> None:
    if shutil.which("sha256sum"):
        assert os.system(f"cd {kept} && sha256sum --quiet -c SHA256SUMS") == 0
    lines = (kept / "SHA256SUMS").read_text().splitlines()
    content = (kept / "card.md").read_bytes()
    assert f"{hashlib.sha256(content).hexdigest()}  card.md" in lines


def test_it_comes_back(kept) -> None:
    artifact = etude.load(str(kept))
    assert artifact.config == fake().config()
    assert (artifact.schema, artifact.classes) == (SCHEMA, ("no", "yes"))
    assert artifact.version == etude.__version__
    assert {name: artifact.card[name] for name in CARD} == CARD
    # color blue weighs 0.5, red -0.5, length -1.5
    assert artifact.predict([[0.1, "red"], [0.1, "blue"], [-1, "red"]]) == ["no", "yes", "yes"]
    assert artifact.predict([{"color": "blue", "length": 0.1}]) == ["yes"]


def test_every_dtype_and_order_comes_back(tmp_path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a.column": np.asfortranarray(rng.normal(size=(3, 4))), "a.strided": np.arange(10)[::3],
        "a.big": np.arange(3, dtype=">i4"), "a.scalar": np.array(2.5, dtype=np.float32),
        "a.none": np.zeros((0, 3)), "a.mask": np.array([True, False]), "a.half": np.float16([1.5]),
        "a.bytes": np.arange(3, dtype=np.uint8), "a.turned": rng.normal(size=(2, 3)).T,
    }  # fmt: skip
    save(tmp_path / "kept", fake(**arrays))
    state = load_artifact(tmp_path / "kept").predictor.state()
    for name, array in arrays.items():
        np.testing.assert_array_equal(state[name], array, err_msg=name)
        assert state[name].shape == np.shape(array)
        assert state[name].dtype == np.asarray(array).dtype.newbyteorder("=")


def test_without_a_schema_rows_are_numbers(tmp_path) -> None:
    for schema, facts in (({}, {"dim": 3}), ({}, {})):
        predictor = fake(classify=False)
        predictor._config["facts"] = facts
        save(tmp_path / f"kept{len(facts)}", predictor, schema=schema)
        artifact = load_artifact(tmp_path / f"kept{len(facts)}")
        # Scores are no classes, though there are class names.
        assert artifact.predict([[1, 2, 3], [0, 0, 2]]) == [-1.0, 1.0]
        assert artifact.predict(np.eye(3)) == [-1.5, -0.5, 0.5]
        for rows, said in (
            ([[1, 2, float("nan")]], "row 1, column '3' must be a finite"),
            ([[1, 2, 3], [1, 2]], "row 2 must have 3 values"),
            ([[1, 2, "3"]], "must be a number"),
            ([[1, 2, 10**400]], "must be a finite"),
            ([1, 2, 3], "row 1 must be a list"),
            ([], "at least one row"),
            ("abc", "at least one row"),
        ):
            with pytest.raises(EtudeError, match=said):
                artifact.predict(rows)


def test_answers_that_are_no_class_ids(kept) -> None:
    artifact, rows = load_artifact(kept), [[0, "red"], [0, "red"]]
    artifact.predictor.predict = lambda x: np.array([[0, 1], [1, 0]])  # ranks of a search
    assert artifact.predict(rows) == [[0, 1], [1, 0]]
    artifact.predictor.predict = lambda x: np.array([1.0, np.inf])
    with pytest.raises(EtudeError, match="answer for row 2 is not a finite"):
        artifact.predict(rows)


@pytest.mark.parametrize("name", FILES)
def test_changed_or_missing_file_is_named(kept, name) -> None:
    content = (kept / name).read_bytes()
    (kept / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(EtudeError, match=f"{name} does not match SHA256SUMS"):
        load_artifact(kept)
    (kept / name).unlink()
    with pytest.raises(EtudeError, match=f"{name} is missing"):
        load_artifact(kept)
    sign(kept)
    with pytest.raises(EtudeError, match=name):
        load_artifact(kept)


def test_what_is_not_listed_is_refused_unless_hidden(kept) -> None:
    (kept / ".git").mkdir()
    load_artifact(kept)
    (kept / "more.bin").write_bytes(b"x")
    with pytest.raises(EtudeError, match=r"more.bin is not listed"):
        load_artifact(kept)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", ".hidden", "", "a b"])
def test_names_that_lead_out_are_refused(kept, name) -> None:
    with (kept / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(EtudeError, match="a sum and a plain name"):
        load_artifact(kept)


def test_newer_and_broken_formats(kept) -> None:
    change_config(kept, format=FORMAT + 1, etude="9.8.7")
    with pytest.raises(EtudeError, match=rf"format {FORMAT + 1}.*9\.8\.7.*{etude.__version__}"):
        load_artifact(kept)
    for broken in (None, "1", 0, True):
        change_config(kept, format=broken)
        with pytest.raises(EtudeError, match=r"config.json must name the artifact's format"):
            load_artifact(kept)


def test_content_that_is_none(kept, monkeypatch, tmp_path) -> None:
    def broken(name: str, content: bytes, said: str) -> None:
        folder = tmp_path / f"broken{len(list(tmp_path.iterdir()))}"
        shutil.copytree(kept, folder)
        (folder / name).write_bytes(content)
        sign(folder)
        with pytest.raises(EtudeError, match=said) as caught:
            load_artifact(folder)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)

    broken("config.json", b"{", "cannot be read")
    broken("config.json", b"[" * 100_000, "cannot be read")
    broken("config.json", b"\xff", "cannot be read")
    broken("config.json", b" " * (16 << 20) + b"{}", "must be under 16,777,216 bytes")
    broken("config.json", b"[]", "must name")
    broken("config.json", b'{"format": 1, "etude": "0.1.0"}', "does not fit this etude")
    broken("card.md", b"no front matter", "cannot be read")
    broken("model.safetensors", b"\x80\x04pickle", "must be a safetensors file")
    broken("model.safetensors", (2**62).to_bytes(8, "little") + b"{}", "must be a safetensors")
    monkeypatch.undo()  # the tasks' own restore knows no arm called fake
    with pytest.raises(EtudeError, match=r"config.json.* does not fit.*no method is called 'fake'"):
        load_artifact(kept)


def test_what_is_no_artifact(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(EtudeError, match="must be an artifact: a folder with SHA256SUMS"):
            load_artifact(folder)


def test_save_refuses_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for refuse in (check_free, save):
        for name in ("full", "file", "full/mine.txt"):
            with pytest.raises(EtudeError, match="must be a new or empty folder"):
                refuse(tmp_path / name)
    with pytest.raises(EtudeError, match=r"card must be complete.*verdict"):
        save(tmp_path / "new", card={k: v for k, v in CARD.items() if k != "verdict"})
    with pytest.raises(EtudeError, match="report must be JSON values"):
        save(tmp_path / "new", card=CARD | {"value": float("nan")})
    with pytest.raises(EtudeError, match=r"state 'a.words' must be an array of numbers"):
        save(tmp_path / "new", fake(**{"a.words": np.array(["x"])}))
    with pytest.raises(EtudeError, match="cannot be written"):
        save(tmp_path / "file" / "new")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(EtudeError, match="new cannot be written: No space left"):
        save(tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]


def test_save_into_an_empty_folder_and_below_new_ones(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    nothing = CARD | {"difference": None, "interval": None, "arxiv": None}  # a kept baseline
    for name in ("empty", "a/b/c"):
        assert load_artifact(save(tmp_path / name, card=nothing)).card["arxiv"] is None
        assert "None" not in (tmp_path / name / "card.md").read_text()


def test_a_fitted_baseline_answers_the_same_after_loading(tmp_path, monkeypatch) -> None:
    from etude.lab.data import load_dataset

    monkeypatch.undo()
    data, task = load_dataset("iris"), tasks.get_task("probe")
    arm, split = tasks.arm_of(task, "logistic_regression"), task.split(data, 0)
    fitted = task.fit(arm, data, split, {"C": 1.0}, seed=0, budget_s=None)
    folder = save(tmp_path / "kept", fitted, schema=data.schema, classes=data.classes)
    expected = [data.classes[k] for k in fitted.predict(data.x)]
    assert load_artifact(folder).predict(data.x) == expected
    assert len(set(expected)) == 3
