"""Image files, decoded when they are asked for, wherever they lie."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

import numpy as np

from unlearning.data.sources.contents import MOST_BYTES, Array, Contents, Stored
from unlearning.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_MOST_PIXELS = 64_000_000
_ONE_CHANNEL, _COLOURED = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")

T = TypeVar("T")
U = TypeVar("U")
Opened: TypeAlias = Callable[[str], "Path | BinaryIO"]
"""The file of a path, or its content."""
StoredOf: TypeAlias = Callable[[Sequence[str], "tuple[int, ...] | None"], Stored]


def classed(files: list[tuple[str, str, str]], marks: Mapping[str, str], stored: StoredOf) -> Contents:
    """Images of classes.

    Args:
        files: Relative path, class and split ("": there are none) of each.
        marks: Of each path: another one where the content is another, as far as that can be told without reading it.
        stored: What reads them.
    """
    files = sorted(files)
    listing = hashlib.sha256()
    for path, _, _ in files:
        text = path.encode(errors="surrogatepass")
        listing.update(f"{len(text)}:".encode() + text + f":{marks[path]};".encode())
    classes = sorted({name for _, name, _ in files})
    index = {name: number for number, name in enumerate(classes)}
    paths = [path for path, _, _ in files]
    return Contents(
        sha256=listing.hexdigest(),
        classes=classes,
        targets=[index[name] for _, name, _ in files],
        ids=paths,
        locations=paths,
        load=lambda wanted, shape: stored(wanted, shape)[np.arange(len(wanted))],
        splits=[split for _, _, split in files] if files and files[0][2] else None,
        stored=stored,
    )


def pictures(opened: Opened, paths: Sequence[str], image_size: int | None, *, threads: int = 1) -> StoredOf:
    """What gives the pixels of some images, each decoded when it is asked for: shape (N, C, H, W), uint8.

    Without a shape, C, H and W are found out from the headers of all that are wanted.

    Args:
        opened: The file of a path, or its content; called by several threads when there are.
        paths: Of all images, in their order, which is how messages number them.
        image_size: H and W that they get, whatever they have; None: they must agree.
        threads: That read and decode at once: for files that come slowly.
    """
    number = {path: row for row, path in enumerate(paths)}

    def stored(wanted: Sequence[str], shape: tuple[int, ...] | None) -> Stored:
        if not all(path in number for path in wanted):
            raise DataError("a location in the manifest is no image of its folder: make a new manifest")
        if shape is None:
            headers = set(_each(lambda path: _header(opened(path), number[path]), wanted, threads))
            channels = 1 if all(mode in _ONE_CHANNEL for mode, _ in headers) else 3
            sizes = {size for _, size in headers}
            if image_size is None and len(sizes) > 1:
                raise DataError(f"the images have {len(sizes)} different sizes: give image_size")
            width, height = next(iter(sizes)) if image_size is None else (image_size, image_size)
            shape = channels, height, width
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(f"{len(wanted)} images of shape {shape} are no images")
        fixed = shape

        def read(rows: Array) -> Array:
            return _decoded(opened, [wanted[row] for row in rows.tolist()], number, fixed, threads)

        return Stored(read, len(wanted), shape, np.uint8)

    return stored


def _decoded(
    opened: Opened, wanted: Sequence[str], number: Mapping[str, int], shape: tuple[int, ...], threads: int
) -> Array:
    """Pixels of the wanted images, shape (N, C, H, W), uint8."""
    channels, height, width = shape
    if len(wanted) * int(np.prod(shape)) > MOST_BYTES:
        raise DataError(f"{len(wanted)} images of shape {shape} are over {MOST_BYTES} bytes")
    pixels = np.empty((len(wanted), height, width, channels), dtype=np.uint8)

    def decode(image: Image.Image) -> Array:
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height))
        return np.asarray(image).reshape(height, width, channels)

    def fill(row: int) -> None:
        pixels[row] = _looked_at(opened(wanted[row]), number[wanted[row]], decode)

    for _ in _each(fill, range(len(wanted)), threads):
        pass
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _each(work: Callable[[T], U], wanted: Iterable[T], threads: int) -> Iterator[U]:
    """What comes of each, in order; by several threads when there are, a few ahead of what is taken."""
    with warnings.catch_warnings():  # of odd pictures; set here, because threads share it
        warnings.simplefilter("ignore")
        if threads == 1:
            yield from map(work, wanted)
            return
        remaining = iter(wanted)
        with ThreadPoolExecutor(threads) as pool:
            begun = deque(pool.submit(work, one) for one in islice(remaining, 2 * threads))
            try:
                while begun:
                    done = begun.popleft().result()
                    begun.extend(pool.submit(work, one) for one in islice(remaining, 1))
                    yield done
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _header(file: Path | BinaryIO, number: int) -> tuple[str, tuple[int, int]]:
    """Mode and size."""
    found: tuple[str, tuple[int, int]] = _looked_at(file, number, lambda image: (image.mode, image.size))
    return found


def _looked_at(file: Path | BinaryIO, number: int, use: Callable[[Image.Image], Any]) -> Any:
    """What `use` makes of an image whose header was found harmless; the image's number stands for its name."""
    from PIL import Image

    try:
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise DataError(f"image {number} of the sorted list has over {_MOST_PIXELS} pixels: shrink it")
            if image.mode not in _ONE_CHANNEL + _COLOURED:
                raise DataError(f"image {number} of the sorted list is no 8-bit image: convert it")
            return use(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = f"({type(error).__name__}): replace it"
        raise DataError(f"image {number} of the sorted list is damaged, too large or no image {reason}") from error
