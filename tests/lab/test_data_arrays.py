"""NPZ and NPY files, and folders of images: good ones and bad ones."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from etude.core import EtudeError
from etude.lab.data import describe, encode_rows, load_dataset

X = np.arange(24, dtype=np.float64).reshape(12, 2)
Y = np.array(["u", "v"] * 6)


def test_npz_and_npy(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=X, y=Y)
    data = load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.x, X.astype(np.float32))
    np.testing.assert_array_equal(data.y, [0, 1] * 6)
    assert data.classes == ("u", "v")
    np.savez(tmp_path / "b.npz", embeddings=np.asfortranarray(X), y=Y[:, None])
    assert load_dataset(tmp_path / "b.npz").hash == data.hash
    np.save(tmp_path / "c.npy", X)
    loaded = load_dataset(tmp_path / "c.npy", need_labels=False)
    np.testing.assert_array_equal(loaded.x, data.x)
    assert loaded.y is None
    assert describe(tmp_path / "c.npy")["rows"] == 12
    np.testing.assert_array_equal(encode_rows(data.schema, X[:3].tolist()), data.x[:3])


def test_npz_tokens(tmp_path):
    tokens = np.random.default_rng(0).standard_normal((12, 5, 3)).astype(np.float32)
    np.savez(tmp_path / "a.npz", tokens=tokens, y=Y)
    data = load_dataset(tmp_path / "a.npz")
    np.testing.assert_array_equal(data.tokens, tokens)
    np.testing.assert_allclose(data.x, tokens.mean(1), rtol=1e-6)
    some = load_dataset(tmp_path / "a.npz", limit=7)
    np.testing.assert_allclose(some.x, some.tokens.mean(1), rtol=1e-6)


def test_npz_images(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=Y)
    data = load_dataset(tmp_path / "a.npz")
    assert data.image_shape == (3, 4, 5)
    np.testing.assert_allclose(data.x.reshape(12, 3, 4, 5)[1, 2, 3, 4], x[1, 3, 4, 2] / 255)
    with pytest.raises(EtudeError, match="row 1, column '1' must be a pixel from 0 to 1, got 7"):
        encode_rows(data.schema, [[7] * 60])


def test_nan_in_npz_follows_missing(tmp_path):
    x = X.copy()
    x[4, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x, y=Y)
    with pytest.raises(EtudeError, match="row 5, column 2 of x must be a number, got NaN"):
        load_dataset(tmp_path / "a.npz")
    dropped = load_dataset(tmp_path / "a.npz", missing="drop")
    np.testing.assert_array_equal(dropped.x, np.delete(X, 4, 0))
    np.testing.assert_array_equal(dropped.y, np.delete([0, 1] * 6, 4))
    filled = load_dataset(tmp_path / "a.npz", missing="median")
    assert filled.x[4, 1] == np.median(np.delete(X[:, 1], 4))
    assert encode_rows(filled.schema, [[0, None]])[0, 1] == filled.x[4, 1]


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": X}, "must hold an array y with the labels"),
        ({"a": X, "b": Y}, "must hold an array x and y, got a, b"),
        ({"y": Y}, "must hold an array x, embeddings or tokens"),
        ({"x": X, "y": Y[:5]}, "y must have one entry a row of x"),
        ({"x": X, "y": np.zeros(12)}, "the target 'y' must have two classes or more"),
        ({"x": X, "y": np.linspace(0, 1, 12)}, "got 12 different numbers"),
        ({"x": X, "y": np.array([0, 1, np.nan] * 4)}, "row 3 of y must have a label"),
        ({"x": X[:, 0], "y": Y}, "x must be numbers of shape"),
        ({"x": X.astype(complex), "y": Y}, "x must be numbers of shape"),
        ({"x": X.astype(str), "y": Y}, "x must be numbers of shape"),
        ({"x": np.where(X == 3, np.inf, X), "y": Y}, "row 2, column 2 of x must be a finite"),
        ({"x": X * 1e38, "y": Y}, "of x must be a finite float32 number"),
        ({"x": np.zeros((0, 2)), "y": Y[:0]}, "x must be numbers of shape|must have two classes"),
        ({"tokens": X, "y": Y}, "tokens must be numbers of shape"),
        ({"tokens": np.full((12, 2, 2), np.nan), "y": Y}, "tokens must be finite"),
        ({"x": X, "y": Y.astype(object)}, "y must be numbers or fixed-width strings, got objects"),
        ({"x": X.astype(object), "y": Y}, "x must be numbers or fixed-width strings, got objects"),
    ],
)
def test_bad_npz_arrays(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(EtudeError, match=match) as caught:
        load_dataset(tmp_path / "a.npz")
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


class Explode:
    """Would write a file if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_never_run(tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Explode(mark)))
    with pytest.raises(EtudeError, match="must be an NPZ file, got a pickle"):
        load_dataset(tmp_path / "a.npz")
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Explode(mark)))
    with pytest.raises(EtudeError, match="must be an array in NPY form"):
        load_dataset(tmp_path / "a.npy", need_labels=False)
    np.save(tmp_path / "b.npy", np.array([Explode(mark)]), allow_pickle=True)
    mark.unlink(missing_ok=True)
    with pytest.raises(EtudeError, match="got objects"):
        load_dataset(tmp_path / "b.npy", need_labels=False)
    assert not mark.exists()


def test_npy_says_where_labels_go(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(EtudeError, match=r"holds features only.*np\.savez"):
        load_dataset(tmp_path / "a.npy")


def test_cut_off_and_lying_files(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(EtudeError, match="must be an NPZ file"):
        load_dataset(tmp_path / "a.npz")
    flipped = bytearray(content)
    flipped[150] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(flipped)
    with pytest.raises(EtudeError, match="must be an NPZ file"):
        load_dataset(tmp_path / "a.npz")
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**3)}
    )
    (tmp_path / "b.npy").write_bytes(buffer.getvalue() + bytes(800))
    with pytest.raises(EtudeError, match="declares 8,000,000,000,000 bytes of data but has"):
        load_dataset(tmp_path / "b.npy", need_labels=False)
    np.save(tmp_path / "c.npy", np.zeros((1000, 10)))
    (tmp_path / "c.npy").write_bytes((tmp_path / "c.npy").read_bytes()[:1000])
    with pytest.raises(EtudeError, match="declares 80,000 bytes of data but has 1,000"):
        load_dataset(tmp_path / "c.npy", need_labels=False)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """300 MB of zeros in 1.4 MB: refused by what the zip's table declares."""
    import tracemalloc

    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (300, 1_000_000)}
    )
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        file.write(buffer.getvalue())
        for _ in range(300):
            file.write(bytes(1_000_000))
    assert (tmp_path / "a.npz").stat().st_size < 1.5e6
    tracemalloc.start()
    with pytest.raises(EtudeError, match=r"x must unpack to at most 256 MB or 200 times its size"):
        load_dataset(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def make_images(root, mode="L", size=(6, 4), names=("cat", "dog")):
    generator = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels, mode=None).save(root / name / f"{i}.png")
    return root


def test_images(tmp_path):
    data = load_dataset(make_images(tmp_path / "pets"))
    assert data.image_shape == (1, 4, 6)
    assert data.classes == ("cat", "dog")
    np.testing.assert_array_equal(data.y, [0, 0, 0, 1, 1, 1])
    first = np.asarray(Image.open(tmp_path / "pets" / "cat" / "0.png"))
    np.testing.assert_allclose(data.x[0].reshape(4, 6), first / 255, rtol=1e-6)
    (tmp_path / "pets" / "README.txt").write_text("notes")
    (tmp_path / "pets" / "cat" / ".hidden").write_text("x")
    assert load_dataset(tmp_path / "pets").hash == data.hash


def test_color_images_are_channel_first(tmp_path):
    data = load_dataset(make_images(tmp_path / "pets", mode="RGB"))
    assert data.image_shape == (3, 4, 6)
    first = np.asarray(Image.open(tmp_path / "pets" / "cat" / "0.png"))
    np.testing.assert_allclose(data.x[0].reshape(3, 4, 6)[2], first[..., 2] / 255, rtol=1e-6)


def test_images_become_one_size(tmp_path):
    make_images(tmp_path / "pets")
    Image.new("RGBA", (100, 80), (0, 0, 0, 0)).save(tmp_path / "pets" / "dog" / "3.png")
    data = load_dataset(tmp_path / "pets")
    assert data.image_shape == (1, 32, 32)
    np.testing.assert_array_equal(data.x[-1], 1)  # wholly transparent is white
    assert load_dataset(tmp_path / "pets", image_size=8).image_shape == (1, 8, 8)
    with pytest.raises(EtudeError, match=r"image_size must be in 1\.\.512, got 0"):
        load_dataset(tmp_path / "pets", image_size=0)


def test_bad_image_folders(tmp_path):
    root = make_images(tmp_path / "pets")
    (root / "cat" / "9.png").write_bytes(b"not an image")
    with pytest.raises(EtudeError, match=r"cat/9\.png must be an image, it cannot be read"):
        load_dataset(root)
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "9.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EtudeError, match=r"cat/9\.png must be an image"):
        load_dataset(root)
    (root / "cat" / "9.png").unlink()
    (root / "cat" / "notes.txt").write_text("x")
    with pytest.raises(EtudeError, match=r"cat/notes\.txt must be an image"):
        load_dataset(root)
    with pytest.raises(EtudeError, match=r"two class folders.*got only 'cat'"):
        load_dataset(make_images(tmp_path / "one", names=("cat",)))
    (tmp_path / "none" / "a").mkdir(parents=True)
    (tmp_path / "none" / "a" / "x.txt").write_text("x")
    with pytest.raises(EtudeError, match="is a folder without images in class folders"):
        load_dataset(tmp_path / "none")
    few = make_images(tmp_path / "few")
    (few / "dog" / "0.png").unlink()
    with pytest.raises(EtudeError, match=r"class 'dog' has 2 row\(s\)"):
        load_dataset(few)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_links_that_lead_outside_are_refused(tmp_path, what):
    root, other = make_images(tmp_path / "pets"), make_images(tmp_path / "other")
    if what == "file":
        (root / "cat" / "9.png").symlink_to(other / "cat" / "0.png")
    else:
        (root / "fox").symlink_to(other / "dog")
    with pytest.raises(EtudeError, match="must lie inside"):
        load_dataset(root)


def test_an_image_of_too_many_pixels_is_not_unpacked(tmp_path, monkeypatch):
    from etude.lab import images

    root = make_images(tmp_path / "pets")
    Image.new("1", (3000, 3000)).save(root / "cat" / "9.png")
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 8_999_999)
    with pytest.raises(EtudeError, match=r"cat/9\.png must have at most 8,999,999 pixels"):
        load_dataset(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own guard: one line too
    with pytest.raises(EtudeError, match="pixels, it declares more"):
        load_dataset(root)
