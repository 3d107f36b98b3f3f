"""The content of text files: unpacked, checked to be UTF-8, without a byte order mark."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ray_eraser.data.problems import unusable

_BLOCK = 1 << 18
"""Bytes that are read or unpacked at a time."""


@dataclass(frozen=True)
class _Packing:
    """A way to pack a file.

    Attributes:
        name: for people.
        opened: a stream of the unpacked bytes, from an open file.
    """

    name: str
    opened: Callable[[IO[bytes]], Any]


class _Streams(io.RawIOBase):
    """The unpacked bytes of a file of one or several streams, such as two packed files joined by `cat`.

    `bz2.BZ2File` and `lzma.LZMAFile` end without an error at anything after the first stream that they cannot unpack.

    Args:
        file: the packed file.
        make: makes the decompressor of one stream.
    """

    def __init__(self, file: IO[bytes], make: Callable[[], Any]) -> None:
        self._parts = self._unpacked(file, make)
        self._left = memoryview(b"")

    @staticmethod
    def _unpacked(file: IO[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
        packed = file.read(_BLOCK)
        while packed:
            one = make()
            while not one.eof:
                if one.needs_input and not (packed := packed or file.read(_BLOCK)):
                    raise EOFError
                yield one.decompress(packed, _BLOCK)
                packed = b""
            packed = one.unused_data.lstrip(b"\0")  # xz allows padding between streams
            while not packed and (more := file.read(_BLOCK)):
                packed = more.lstrip(b"\0")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = memoryview(part)
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n


_PACKINGS = {
    ".gz": _Packing("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": _Packing("bzip2", lambda file: io.BufferedReader(_Streams(file, bz2.BZ2Decompressor))),
    ".xz": _Packing("xz", lambda file: io.BufferedReader(_Streams(file, lzma.LZMADecompressor))),
    ".zst": _Packing("zstd", lambda file: pa.CompressedInputStream(file, "zstd")),
}
_NOT_PACKED = _Packing("", lambda file: file)
PACKED = tuple(_PACKINGS)
"""Suffixes of packed files that can be read."""

_BEGINNING = 1 << 16
"""Bytes."""

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
    data = _read(path)
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


def beginning(path: Path) -> bytes:
    """The first lines of a text file, without reading all of it if the file is sound. Raises as `content`."""
    try:
        data = _read(path, _BEGINNING)
        lines = data if len(data) < _BEGINNING else data[: data.rindex(b"\n") + 1]
        lines.decode()
    except ValueError:  # not UTF-8, which `content` says with the line; or the first line is long
        return content(path)
    lines = lines.removeprefix(b"\xef\xbb\xbf")
    return lines if lines.strip() else content(path)


def _read(path: Path, size: int = -1) -> bytes:
    """The first bytes of a file, unpacked; all of them for -1."""
    packing = _PACKINGS.get(path.suffix.lower(), _NOT_PACKED)
    with path.open("rb") as file:
        if not file.read(1):
            return b""
        file.seek(0)
        try:
            with packing.opened(file) as stream:
                data: bytes = stream.read(size) if size >= 0 else stream.read()
        except EOFError as error:
            raise unusable(path, f"ends within its {packing.name} data: copy it again") from error
        except (OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            if packing is _NOT_PACKED or (isinstance(error, OSError) and error.errno):
                raise
            problem = f"is not sound {packing.name} data ({error}): copy it again or drop {path.suffix} from its name"
            raise unusable(path, problem) from error
    return data
