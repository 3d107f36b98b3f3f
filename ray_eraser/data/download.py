"""MovieLens from GroupLens, for users who want a public data set. Its terms forbid shipping it with this package."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.request import urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ray_eraser.errors import DataFileError

BASE_URL = "https://files.grouplens.org/datasets/movielens"
PAGE = "https://grouplens.org/datasets/movielens/"
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Release:
    """One archive of GroupLens: its file name, the MD5 that GroupLens publishes beside it, and the folder inside."""

    archive: str
    md5: str
    folder: str


RELEASES = {
    "100k": Release("ml-100k.zip", "0e33842e24a9c977be4e0107933c0723", "ml-100k"),
    "1m": Release("ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", "ml-1m"),
    "10m": Release("ml-10m.zip", "ce571fd55effeba0271552578f2648bd", "ml-10M100K"),
}


def download_movielens(name: str, folder: Path, base_url: str = BASE_URL, timeout: float = 30) -> Path:
    """The unpacked release `name` under `folder`, which `read_dataset` can read; nothing is fetched that is already there.

    An archive that the user has put into `folder` is taken in place of the download. A run that breaks off leaves nothing that
    a later run could take for whole.

    Args:
        name: `100k`, `1m` or `10m`.
        folder: where the archive and the folder made from it go; made if missing.
        base_url: another mirror, or a server of one's own.
        timeout: seconds to wait for the server's next bytes.

    Raises:
        DataFileError: unknown release, no network, wrong checksum, an archive that cannot be unpacked, no room or permission.
    """
    release = RELEASES.get(name)
    if release is None:
        raise DataFileError(name, f"is no MovieLens release known here: choose one of {', '.join(RELEASES)}")
    unpacked, archive = folder / release.folder, folder / release.archive
    if unpacked.is_dir():
        return unpacked
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not archive.exists():
            _download(release, archive, f"{base_url.rstrip('/')}/{release.archive}", timeout)
        _check(release, archive)
        _unpack(release, archive, unpacked)
    except OSError as error:
        raise DataFileError(
            str(folder), f"cannot be written ({error.strerror or error}): check room and permissions"
        ) from error
    return unpacked


def _download(release: Release, archive: Path, url: str, timeout: float) -> None:
    with ExitStack() as cleanup:
        part = cleanup.enter_context(tempfile.NamedTemporaryFile(dir=archive.parent, prefix=".download-", delete=False))
        cleanup.callback(Path(part.name).unlink, missing_ok=True)
        try:
            _fetch(url, part, timeout, release.archive)
        except (OSError, HTTPException) as error:  # URLError, timeouts and broken connections are OSErrors
            raise DataFileError(
                url,
                f"cannot be downloaded ({error}): get {release.archive} from {PAGE} on a machine with a network, put it into "
                f"{archive.parent} and run again",
            ) from error
        part.flush()
        _check(release, Path(part.name), url)
        Path(part.name).replace(archive)


def _fetch(url: str, target: IO[bytes], timeout: float, label: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        urlopen(url, timeout=timeout) as response,  # noqa: S310  # the caller chooses the server; the checksum guards the content
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        length = response.headers.get("Content-Length", "")
        task = progress.add_task(label, total=int(length) if length.isdigit() else None)
        while chunk := response.read(_CHUNK):
            target.write(chunk)
            progress.advance(task, len(chunk))


def _check(release: Release, archive: Path, where: str | None = None) -> None:
    with archive.open("rb") as content:
        md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != release.md5:
        raise DataFileError(
            where or str(archive),
            f"is damaged or another version (MD5 {md5}, GroupLens has {release.md5}): remove it and get it again from {PAGE}",
        )


def _unpack(release: Release, archive: Path, unpacked: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".unpack-") as staging:
        try:
            with zipfile.ZipFile(archive) as content:
                for member in content.namelist():
                    parts = PurePosixPath(member.replace("\\", "/")).parts
                    if not parts or parts[0] != release.folder or ".." in parts:
                        raise DataFileError(
                            str(archive), f"holds {member!r}, outside its folder {release.folder}: do not use it"
                        )
                content.extractall(staging)  # every name was checked above
        except zipfile.BadZipFile as error:
            raise DataFileError(str(archive), f"is no zip archive ({error}): remove it and run again") from error
        os.rename(Path(staging, release.folder), unpacked)  # noqa: PTH104  # replace() would promise to overwrite
