"""One numpy array out of a file that may be hostile: nothing is unpickled, and no header is believed."""

from __future__ import annotations

import tokenize
import zlib
from typing import IO, Any

import numpy as np

from unlearning.errors import DataError

_BROKEN = (ValueError, TypeError, EOFError, OSError, SyntaxError, RuntimeError, zlib.error, tokenize.TokenError)


def read_array(stream: IO[bytes], size: int, *, what: str) -> np.ndarray[Any, Any]:
    """The array of a `.npy` stream, read only after its header and its size were found to agree.

    Args:
        stream: At the start of the array.
        size: Bytes in the stream, header and all.
        what: The array's name, for the message.

    Raises:
        DataError: For objects, structures, and a header that promises more or less than there is.
    """
    from zipfile import BadZipFile

    try:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, columns_first, dtype = header(stream)
        data = size - stream.tell()
    except (*_BROKEN, BadZipFile) as error:
        raise DataError(f"{what} is not a numpy array ({type(error).__name__}): write it again with numpy") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise DataError(f"{what} must hold numbers or text, its type is {dtype.kind!r}: convert it before saving")
    count = 1
    for extent in shape:  # Python integers: a hostile shape cannot overflow them
        count *= int(extent)
    if min(shape, default=0) < 0 or count * dtype.itemsize != data:
        raise DataError(f"{what} promises {count * dtype.itemsize} bytes and has {data}: the file is damaged")
    try:
        content = stream.read(data)
        flat = np.frombuffer(bytearray(content), dtype=dtype) if dtype.itemsize else np.zeros(count, dtype)
        return flat.reshape(shape, order="F" if columns_first else "C")
    except (*_BROKEN, BadZipFile) as error:
        raise DataError(f"{what} cannot be read ({type(error).__name__}): the file is damaged") from error
