"""Images that are objects in a store: listed once, read batch by batch, by several threads."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from pathlib import PurePosixPath

from unlearning.data.manifest import SPLITS
from unlearning.data.sources.contents import Address, Contents, Listed, shown
from unlearning.data.sources.pictures import SUFFIXES, classed, pictures
from unlearning.errors import DataError, UsageError

_THREADS = 16
"""Each waits for an answer most of the time."""
_MOST_IMAGE_BYTES = 64 << 20


def images(address: Address) -> Contents:
    """Images at CLASS/NAME below the place, or at train/CLASS/NAME and test/CLASS/NAME.

    Their content is told by the tags of the listing, and an object that was written anew since is not read.
    """
    if address.objects is None:
        raise UsageError(f"{shown(address.place)} lies in an object store, which is not opened here: give `objects`")
    place = address.objects(address.place)
    found = {one.key: one for one in place.listed() if not _hidden(one.key)}
    files = _sorted_out(found.values(), address.place)
    stored = pictures(
        lambda path: BytesIO(place.read(found[path])),
        [path for path, _, _ in sorted(files)],
        address.image_size,
        threads=_THREADS,
    )
    return classed(files, {path: f"{found[path].size};{found[path].tag}" for path, _, _ in files}, stored)


def _hidden(key: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(key).parts)


def _sorted_out(found: Iterable[Listed], place: str) -> list[tuple[str, str, str]]:
    """Key, class and split of every object; "" where there are no splits."""
    parts = {one.key: PurePosixPath(one.key).parts for one in found}
    tops = {some[0] for some in parts.values()}
    divided = {"train", "test"} <= tops
    if not tops or not (tops <= set(SPLITS) if divided else tops.isdisjoint(SPLITS)):
        raise DataError(f"{shown(place)} needs images below train and test and nothing else, or below classes only")
    files = []
    for number, one in enumerate(found):
        some = parts[one.key]
        if len(some) != 2 + divided or PurePosixPath(one.key).suffix.lower() not in SUFFIXES:
            wanted = f"{'train/CLASS/' if divided else 'CLASS/'}NAME with one of {', '.join(sorted(SUFFIXES))}"
            raise DataError(f"object {number} of the sorted list in {shown(place)} is no {wanted}: move it away")
        if one.size > _MOST_IMAGE_BYTES:
            raise DataError(f"image {number} of the sorted list has over {_MOST_IMAGE_BYTES} bytes: shrink it")
        files.append((one.key, some[-2], some[0] if divided else ""))
    return files
