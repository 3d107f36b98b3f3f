"""The content of text files: unpacked, checked to be UTF-8, without a byte order mark."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ray_eraser.data.problems import unusable


def _unzst(data: bytes) -> bytes:
    with pa.input_stream(pa.py_buffer(data), compression="zstd") as stream:
        whole: bytes = stream.read()
    return whole


_UNPACK: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    ".gz": ("gzip", gzip.decompress),
    ".bz2": ("bzip2", bz2.decompress),
    ".xz": ("xz", lzma.decompress),
    ".zst": ("zstd", _unzst),
}
PACKED = tuple(_UNPACK)
"""Suffixes of packed files that can be read."""

OTHER_PACKED = (".zip", ".7z", ".rar", ".tar", ".tgz", ".lz4", ".snappy", ".lzo", ".z")
"""Suffixes of packed files that must be unpacked first."""


def plain_name(path: Path) -> str:
    """The name of a file without the suffix that says how it is packed."""
    return path.stem if path.suffix.lower() in PACKED else path.name


def suffix(path: Path) -> str:
    """The suffix, in lower case, that says the kind of a file, packed or not."""
    return Path(plain_name(path)).suffix.lower()


def content(path: Path) -> bytes:
    """Read a whole text file.

    Raises:
        DataFileError: it is empty, damaged or not UTF-8.
    """
    data = path.read_bytes()
    if data and path.suffix.lower() in PACKED:
        data = _unpacked(path, data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise unusable(path, "is UTF-16: convert it, as with iconv -f UTF-16 -t UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise unusable(path, "is empty")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise unusable(
            path, f"byte {data[error.start]:#04x} is not UTF-8: convert it, as with iconv -f windows-1252 -t UTF-8", line
        ) from error
    return data


def _unpacked(path: Path, data: bytes) -> bytes:
    name, unpack = _UNPACK[path.suffix.lower()]
    try:
        return unpack(data)
    except EOFError as error:
        raise unusable(path, f"ends within its {name} data: copy it again") from error
    except (OSError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        problem = f"is not sound {name} data ({error}): copy it again or drop {path.suffix} from its name"
        raise unusable(path, problem) from error
