"""One numpy array out of a file that may be hostile: nothing is unpickled, and no header is believed."""

from __future__ import annotations

import io
import tokenize
import zlib
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np

from unlearning.errors import DataError

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_HEADER_BYTES = 1 << 16
_BROKEN = (
    *(ValueError, TypeError, KeyError, EOFError, OSError, SyntaxError, RuntimeError, MemoryError),
    *(BadZipFile, zlib.error, tokenize.TokenError),
)


def read_array(stream: IO[bytes], size: int, *, what: str) -> np.ndarray[Any, Any]:
    """The array of a `.npy` stream, read only after its header and its size were found to agree.

    Args:
        stream: At the start of the array.
        size: Bytes in the stream, header and all.
        what: The array's name, for the message.

    Raises:
        DataError: For objects, structures, and a header that promises more or less than there is.
    """
    try:
        head = io.BytesIO(stream.read(min(size, _MOST_HEADER_BYTES)))
        shape, columns_first, dtype = _HEADERS[np.lib.format.read_magic(head)](head)
    except _BROKEN as error:
        raise DataError(f"{what} is not a numpy array ({type(error).__name__}): write it again with numpy") from error
    if dtype.hasobject or dtype.kind not in "biufU" or not dtype.itemsize:
        raise DataError(f"{what} must hold numbers or text, its type is {dtype.kind!r}: convert it before saving")
    count, data = 1, size - head.tell()
    for extent in shape:  # Python integers: no hostile shape overflows them
        count *= int(extent)
    if min(shape, default=0) < 0 or count * dtype.itemsize != data:
        raise DataError(f"{what} promises {count * dtype.itemsize} bytes and has {data}: the file is damaged")
    try:
        flat = np.empty(count, dtype=dtype)
        space, filled = flat.view(np.uint8), 0
        while chunk := head.read() or stream.read(min(1 << 20, data - filled)):
            space[filled : filled + len(chunk)] = np.frombuffer(chunk, dtype=np.uint8)
            filled += len(chunk)
        if filled != data:
            raise EOFError("the file ends early")
        if dtype.kind == "U" and count and int(flat.view(dtype.str[0] + "u4").max()) > 0x10FFFF:
            raise ValueError("it holds no Unicode")
        return flat.astype(dtype.newbyteorder("="), copy=False).reshape(shape, order="F" if columns_first else "C")
    except _BROKEN as error:
        raise DataError(f"{what} cannot be read ({type(error).__name__}): the file is damaged") from error
