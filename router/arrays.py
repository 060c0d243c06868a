"""The arrays of a saved router out of an .npz, trusting nothing in it.

NumPy's own reader is safe from code (``allow_pickle=False``) but not from size: a compressed
member, or a header that claims a billion rows, is believed before it is read. Here a member must be
stored uncompressed, as ``np.savez`` does, and hold exactly the bytes its header speaks of; so no
file needs more memory than a small multiple of its own length.
"""

import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Booleans, integers, floats and plain strings: no objects, no records, no dates.
KINDS = "biufU"
ENDING = ".npy"


def unpack(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays by name. Raises ValueError, saying what is wrong, for anything but what
    ``np.savez`` writes of plain arrays."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = file.infolist()
            _check(members, len(content))
            return {one.filename.removesuffix(ENDING): _array(file.read(one)) for one in members}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(str(error)) from None


def _check(members: list[zipfile.ZipInfo], length: int) -> None:
    names = [one.filename for one in members]
    if len(set(names)) < len(names):
        raise ValueError("an array is there twice")
    for one in members:
        if not (one.filename.endswith(ENDING) and one.filename.removesuffix(ENDING).isidentifier()):
            raise ValueError(f"{one.filename!r} is no array")
        if one.compress_type != zipfile.ZIP_STORED or one.file_size != one.compress_size:
            raise ValueError(f"{one.filename} is compressed")
    # Members that overlap would each be as long as the file.
    if sum(one.file_size for one in members) > length:
        raise ValueError("the arrays are longer than the file")


def _array(member: bytes) -> NDArray[Any]:
    file = io.BytesIO(member)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"array format {version}")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject or dtype.kind not in KINDS or not dtype.isnative:
        raise ValueError(f"an array of {dtype}")
    body = member[file.tell() :]
    if any(size < 0 for size in shape) or len(body) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(body)} bytes for an array of shape {shape}")
    array = np.frombuffer(body, dtype) if body else np.zeros(0, dtype)
    return array.reshape(shape[::-1]).T.copy("K") if by_column else array.reshape(shape).copy()
