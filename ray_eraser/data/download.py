"""Download MovieLens from GroupLens. Its terms do not allow this package to contain the data."""

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

from ray_eraser.data.problems import unusable

BASE_URL = "https://files.grouplens.org/datasets/movielens"
PAGE = "https://grouplens.org/datasets/movielens/"
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Release:
    """One archive of GroupLens: its file name, the MD5 that GroupLens publishes, and the folder in the archive."""

    archive: str
    md5: str
    folder: str


RELEASES = {
    "100k": Release("ml-100k.zip", "0e33842e24a9c977be4e0107933c0723", "ml-100k"),
    "1m": Release("ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", "ml-1m"),
    "10m": Release("ml-10m.zip", "ce571fd55effeba0271552578f2648bd", "ml-10M100K"),
}


def download_movielens(name: str, folder: Path, base_url: str = BASE_URL, timeout: float = 30) -> Path:
    """Download and unpack a release of MovieLens, unless it is there already.

    An archive that is already in `folder` is not downloaded. After an interrupted run, the next run starts again.

    Args:
        name: `100k`, `1m` or `10m`.
        folder: for the archive and the unpacked release; made if missing.
        base_url: the server; set it to use a mirror.
        timeout: seconds to wait for the server's next bytes.

    Returns:
        The folder of the release, which `read_dataset` can read.

    Raises:
        DataFileError: the release is unknown, there is no network, room or permission, or the archive is damaged.
    """
    release = RELEASES.get(name)
    if release is None:
        raise unusable(name, f"is no MovieLens release known here: choose one of {', '.join(RELEASES)}")
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
        raise unusable(folder, f"cannot be written ({error.strerror or error}): check room and permissions") from error
    return unpacked


def _download(release: Release, archive: Path, url: str, timeout: float) -> None:
    with ExitStack() as cleanup:
        part = cleanup.enter_context(tempfile.NamedTemporaryFile(dir=archive.parent, prefix=".download-", delete=False))
        cleanup.callback(Path(part.name).unlink, missing_ok=True)
        try:
            _fetch(url, part, timeout, release.archive)
        except (OSError, HTTPException) as error:  # URLError, timeouts and broken connections are OSErrors
            raise unusable(
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
        raise unusable(
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
                        raise unusable(archive, f"holds {member!r}, outside its folder {release.folder}: do not use it")
                content.extractall(staging)  # every name was checked above
        except zipfile.BadZipFile as error:
            raise unusable(archive, f"is no zip archive ({error}): remove it and run again") from error
        os.rename(Path(staging, release.folder), unpacked)  # noqa: PTH104  # replace() would promise to overwrite
