"""A folder of images in class folders, as rows of pixels in [0, 1]."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from etude.core import EtudeError
from etude.tasks.base import Dataset

__all__ = ["find_images", "read_images"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
MAX_IMAGE_PIXELS = 64 << 20  # of one image, before it is unpacked
MOST_IMAGES = 200_000
LARGEST_SIDE = 512
SIDE = 32
# What Pillow's readers raise for a file that breaks off or lies.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    IndexError,
    struct.error,
    zlib.error,
)


def read_images(folder: Path, *, image_size: int | None = None) -> Dataset:
    """Each class folder's images, in the order of their names; labels are the folders' names.

    Images of one size up to 32 x 32 keep it; others become 32 x 32, or `image_size` squared.
    They are gray where every image is, RGB otherwise; what is transparent becomes white.

    Raises:
        EtudeError: there are no images or only one class, a file is no image or leads outside,
            an image has too many pixels.
    """
    if image_size is not None and not 1 <= image_size <= LARGEST_SIDE:
        raise EtudeError(f"image_size must be in 1..{LARGEST_SIDE}, got {image_size}")
    found = find_images(folder)
    if len(found) < 2:
        raise EtudeError(
            f"{folder} must have two class folders with images or more, got only "
            f"{next(iter(found))!r}; one folder a class"
        )
    paths = [(path, k) for k, files in enumerate(found.values()) for path in files]
    side = (image_size, image_size) if image_size else common_size([p for p, _ in paths])
    pixels = np.empty((len(paths), side[1], side[0], 3), dtype=np.uint8)
    for n, (path, _) in enumerate(paths):
        pixels[n] = read_image(path, side)
    gray = bool((pixels == pixels[..., :1]).all())
    planes = pixels[..., :1] if gray else pixels
    planes = np.moveaxis(planes, -1, 1)
    shape = (planes.shape[1], planes.shape[2], planes.shape[3])
    x = planes.reshape(len(paths), -1).astype(np.float32) / np.float32(255)
    return Dataset(
        name=folder.name,
        x=x,
        y=np.array([k for _, k in paths], dtype=np.int64),
        classes=tuple(found),
        image_shape=shape,
        schema={
            "format": "array", "n_features": x.shape[1], "target": "the class folder",
            "range": [0, 1], "why": "gray pixels" if gray else "RGB pixels, channel by channel",
        },
    )  # fmt: skip


def find_images(folder: Path) -> dict[str, list[Path]]:
    """The image files of each class folder, sorted by name; hidden files are passed over."""
    root = folder.resolve()
    found: dict[str, list[Path]] = {}
    n_images = 0
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or not (entry.is_dir() or entry.is_symlink()):
            continue
        check_inside(entry, root)
        files = [
            path
            for path in (sorted(entry.iterdir()) if entry.is_dir() else ())
            if not path.name.startswith(".") and path.name != "Thumbs.db"
        ]
        for path in files:
            check_inside(path, root)
        odd = [p for p in files if p.suffix.lower() not in SUFFIXES or not p.is_file()]
        if len(odd) == len(files):
            continue  # no class: notes, or another data set
        if odd:
            raise EtudeError(
                f"{odd[0]} must be an image ({', '.join(SUFFIXES)}), for it is among images; "
                "take it out"
            )
        n_images += len(files)
        if n_images > MOST_IMAGES:
            raise EtudeError(f"{folder} must have at most {MOST_IMAGES:,} images; take a part")
        found[entry.name] = files
    if not found:
        raise EtudeError(
            f"{folder} is a folder without images in class folders; "
            "give a file, or a folder such as animals/cat/1.png, animals/dog/2.png"
        )
    return found


def check_inside(path: Path, root: Path) -> None:
    """Refuse a link that leads out of the folder."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise EtudeError(f"{path} must lie inside {root}, it is a link to {path.resolve()}")


def common_size(paths: list[Path]) -> tuple[int, int]:
    """(width, height) that all images become."""
    sizes = set()
    for path in paths:
        with open_image(path) as image:
            try:
                turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # stored on its side
            except BROKEN as error:
                refuse_broken(path, error)
            sizes.add(image.size[::-1] if turned else image.size)
        if len(sizes) > 1:
            return SIDE, SIDE
    only = sizes.pop()
    return only if max(only) <= SIDE else (SIDE, SIDE)


def open_image(path: Path) -> Image.Image:
    """The image's header, checked; its pixels are not read yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        refuse_pixels(path)
    except BROKEN as error:
        refuse_broken(path, error)
    if image.size[0] * image.size[1] > MAX_IMAGE_PIXELS:
        image.close()
        refuse_pixels(path)
    return image


def read_image(path: Path, side: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8, resized to `side`, which is (width, height)."""
    with open_image(path) as image:
        try:
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I"):  # 16 bits a pixel
                deep = np.asarray(turned, dtype=np.int64) >> 8
                turned = Image.fromarray(np.clip(deep, 0, 255).astype(np.uint8))
            if "A" in turned.mode or "transparency" in turned.info:
                layer = turned.convert("RGBA")
                turned = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            turned = turned.convert("RGB")
            if turned.size != side:
                turned = turned.resize(side, Image.Resampling.BOX, reducing_gap=2.0)
            return np.asarray(turned, dtype=np.uint8)
        except BROKEN as error:
            refuse_broken(path, error)


def refuse_broken(path: Path, error: Exception) -> NoReturn:
    """Not an image, or one that breaks off."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise EtudeError(f"{path} must be an image, it cannot be read ({reason}); take it out")


def refuse_pixels(path: Path) -> NoReturn:
    """An image that would unpack to too much."""
    raise EtudeError(
        f"{path} must have at most {MAX_IMAGE_PIXELS:,} pixels, it declares more; make it smaller"
    )
