"""The files of a deployment, under its storage path.

Files are immutable and named by the SHA-256 of their content. A manifest lists the files of one generation and is written
last. The ledger records which generation is current, because object stores have no atomic rename. No format runs code when it
is read: safetensors for numbers, Parquet for ids, JSON for manifests.

**The content is a function of the remaining interactions, the config and the seed** (docs/decisions/0028). Ids are in the
order of their keyed hashes. Ids without an interaction are in no file. No file holds row numbers that several shards share.
The exceptions are the ledger, `ledger.json`, and the reports of submitted jobs.

    vocabulary/users-<part>-<digest>.parquet     key, id: in the order of keys; a part has the keys with its highest five bits
    vocabulary/items-<part>-<digest>.parquet
    shards/<k>/interactions-<digest>.safetensors user_keys, item_keys; the number of items of every user; the items' rows
    shards/<k>/submodel-<digest>.safetensors     user_keys, users, item_keys, items
    shards/<k>/checkpoint-<digest>.safetensors   the training state after a stage (`training.slices`)
    aggregate/aggregate-<digest>.safetensors
    generations/<digest>.json
    pieces/<name>                                pieces of a log while it is being divided (`ingest`)
    ledger.json                                  the name of the ledger that these files belong to
    results/<name>.json                          reports of submitted jobs: figures, no ids; the package never deletes them

On a local disk, only the owner can read the folders and files, whatever the umask.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ray_eraser import seeds
from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.keyed import ShardData
from ray_eraser.data.vocabulary import PARTS, Part, Vocabulary
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import ConfigError, InputError, StoreError, one_line
from ray_eraser.ids import ShardId
from ray_eraser.models.base import TrainingState

_FORMAT = 2
_OWNER = "ledger.json"
_FORMER_OWNER = "deployment.json"
"""The same file in format 1."""
_OWN_FILES = re.compile(
    r"((vocabulary/(users|items)-\d\d-|shards/\d+/[a-z]+-|aggregate/aggregate-|generations/)[0-9a-f]{64}"
    r"\.(parquet|safetensors|json)|pieces/[a-z]+-?\d*)(\.partial-[0-9a-f]+)?",
    re.ASCII,
)
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600
_BLOCK = 1 << 20
_WAYS_OUT = {
    errno.ENOSPC: "free some space on it",
    errno.EDQUOT: "raise the quota, or free some space",
    errno.EROFS: "mount the disk writable, and check its health",
}
"""What to do about an operating system's error, by its number."""
_RESTORE = "restore it from a copy, or train again"


@dataclass(frozen=True)
class FileRef:
    """A stored file: its path under the storage path, and the digest that its content must have."""

    path: str
    digest: str


@dataclass(frozen=True)
class ShardRecord:
    """The files and sizes of one shard in one generation.

    Attributes:
        checkpoints: the training state after every stage but the last, in order; none without slices.
    """

    shard: ShardId
    interactions: FileRef
    submodel: FileRef
    n_train: int
    n_valid: int
    checkpoints: tuple[FileRef, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """One generation: all its files, and everything that its bits depend on. It has no times and no history.

    Attributes:
        config: the settings, with the values that were chosen from the log filled in.
        environment: what the bits depend on besides the data and the settings.
        chosen: names of the settings that were chosen from the log; see docs/decisions/0007.
        integers: `user` and `item`, if their ids are returned as integers.
        users, items: the vocabulary parts that have an id, in the order of keys.
        shards: every shard's files.
        aggregate: the served model.
    """

    config: EraserConfig
    environment: dict[str, str | int]
    chosen: tuple[str, ...]
    integers: tuple[str, ...]
    users: tuple[FileRef, ...]
    items: tuple[FileRef, ...]
    shards: tuple[ShardRecord, ...]
    aggregate: FileRef

    @property
    def guarantee(self) -> str:
        """The level that every receipt of this generation may claim.

        `exact-given-partition` if the partition was learned from the log; else `exact-given-settings` if a setting was chosen
        from the log; else `exact`.
        """
        return self.config.guarantee_given(self.chosen)

    def files(self) -> list[FileRef]:
        """All files of this generation except the manifest itself."""
        parts = [ref for record in self.shards for ref in (record.interactions, record.submodel, *record.checkpoints)]
        return [*self.users, *self.items, *parts, self.aggregate]

    @property
    def n_interactions(self) -> int:
        """Number of training interactions."""
        return sum(record.n_train for record in self.shards)

    def to_json(self) -> bytes:
        fields = asdict(self) | {"config": self.config.model_dump(mode="json"), "format": _FORMAT}
        return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        fields: dict[str, Any] = json.loads(text)
        if fields["format"] != _FORMAT:
            raise ValueError(f"format {fields['format']}, this version reads {_FORMAT}: train again with another storage path")
        return cls(
            config_from(fields["config"]),
            fields["environment"],
            tuple(fields["chosen"]),
            tuple(fields["integers"]),
            tuple(FileRef(**ref) for ref in fields["users"]),
            tuple(FileRef(**ref) for ref in fields["items"]),
            tuple(
                ShardRecord(
                    ShardId(record["shard"]),
                    FileRef(**record["interactions"]),
                    FileRef(**record["submodel"]),
                    record["n_train"],
                    record["n_valid"],
                    tuple(FileRef(**ref) for ref in record["checkpoints"]),
                )
                for record in fields["shards"]
            ),
            FileRef(**fields["aggregate"]),
        )


class Store:
    """Files under one storage path: a local folder, or a URI that pyarrow reads (s3://, gs://)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            if "://" in uri:
                self._fs, self._root = fs.FileSystem.from_uri(uri)
            else:
                self._fs, self._root = fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"storage path {uri!r} cannot be used ({error}): give a folder, or an s3:// or gs:// URI"
            ) from error

    @property
    def local_folder(self) -> Path | None:
        """The folder, if the store is local; None on object stores."""
        return Path(self._root) if isinstance(self._fs, fs.LocalFileSystem) else None

    # ---- the files of a generation -------------------------------------------------------------------------------------

    def write_vocabulary(
        self, vocabulary: Vocabulary, before: Vocabulary | None = None, refs: Sequence[FileRef] = ()
    ) -> tuple[FileRef, ...]:
        """Write the parts of a vocabulary. Parts shared with the previous vocabulary are not written again.

        Args:
            vocabulary: the vocabulary to write.
            before: a vocabulary that is stored here already.
            refs: the files of `before`.
        """
        known = {} if before is None else dict(zip(_kept_parts(before), refs, strict=True))
        written = []
        for number in _kept_parts(vocabulary):
            part = vocabulary.parts[number]
            if before is not None and number in known and part is before.parts[number]:
                written.append(known[number])
            else:
                written.append(self._write(f"vocabulary/{vocabulary.kind}s-{number:02d}", "parquet", part_bytes(part)))
        return tuple(written)

    def read_vocabulary(
        self, refs: Sequence[FileRef], kind: str, manifest: Manifest, before: Mapping[FileRef, Part] = MappingProxyType({})
    ) -> Vocabulary:
        """Read the vocabulary of one kind.

        Args:
            refs: its files.
            kind: `user` or `item`.
            manifest: the generation's.
            before: parts that have been read already.
        """
        parts = [Part.empty()] * PARTS
        for ref in refs:
            parts[int(ref.path.split("-")[1])] = before[ref] if ref in before else self.read_part(ref)
        return Vocabulary(kind, seeds.secret(manifest.config.seed, "ids"), tuple(parts), kind in manifest.integers)

    def read_part(self, ref: FileRef) -> Part:
        """Read one part of a vocabulary.

        Raises:
            StoreError: the file cannot be read, or is not a vocabulary part.
        """
        try:
            table = _table_of(ref, self.read(ref), ["key", "id"]).combine_chunks()
            ids = table["id"].cast(pa.string())
            return Part(table["key"].to_numpy(), ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)
        except (KeyError, ValueError) as error:  # Arrow's own errors are ValueErrors
            raise StoreError(ref.path, f"is not a part of a vocabulary ({error}): {_RESTORE}") from error

    def write_shard_data(self, shard: ShardId, data: ShardData) -> FileRef:
        return self._write(f"shards/{shard}/interactions", "safetensors", shard_data_bytes(data))

    def read_shard_data(self, ref: FileRef) -> ShardData:
        try:
            arrays = load_tensors(self.read(ref))
            train, valid = (
                Interactions(np.repeat(np.arange(len(counts), dtype=np.int32), counts), items)
                for counts, items in ((arrays["train"], arrays["train_items"]), (arrays["valid"], arrays["valid_items"]))
            )
            return ShardData(arrays["user_keys"], arrays["item_keys"], train, valid)
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise StoreError(ref.path, f"is not a file of interactions ({error}): {_RESTORE}") from error

    def write_submodel(self, shard: ShardId, submodel: KeyedEmbeddings) -> FileRef:
        return self._write(f"shards/{shard}/submodel", "safetensors", embeddings_bytes(submodel))

    def write_checkpoint(self, shard: ShardId, state: TrainingState) -> FileRef:
        return self._write(f"shards/{shard}/checkpoint", "safetensors", checkpoint_bytes(state))

    def read_checkpoint(self, ref: FileRef) -> TrainingState:
        try:
            return TrainingState.of(load_tensors(self.read(ref)))
        except (SafetensorError, KeyError) as error:
            raise StoreError(ref.path, f"is not a checkpoint ({error}): {_RESTORE}") from error

    def write_aggregate(self, aggregate: KeyedEmbeddings) -> FileRef:
        return self._write("aggregate/aggregate", "safetensors", embeddings_bytes(aggregate))

    def read_embeddings(self, ref: FileRef) -> KeyedEmbeddings:
        try:
            return KeyedEmbeddings(**load_tensors(self.read(ref)))
        except (SafetensorError, TypeError) as error:
            raise StoreError(ref.path, f"is not a file of embeddings ({error}): {_RESTORE}") from error

    def write_manifest(self, manifest: Manifest) -> FileRef:
        """Write the last file of a generation. If it exists, all other files of the generation exist."""
        return self._write("generations/", "json", manifest.to_json())

    def read_manifest(self, digest: str) -> Manifest:
        ref = manifest_ref(digest)
        try:
            return Manifest.from_json(self.read(ref))
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            if isinstance(error, ConfigError) and error.key.endswith(".kind"):
                raise  # the manifest is sound, but needs a kind from a package that is not installed
            raise StoreError(ref.path, f"is not a manifest ({error})") from error

    # ---- the owner of the files ----------------------------------------------------------------------------------------

    def owner(self) -> str | None:
        """The name of the ledger that the files belong to; None if no ledger has claimed them.

        Raises:
            StoreError: an earlier version made the files, or the name cannot be read.
        """
        try:
            with self._fs.open_input_file(f"{self._root}/{_OWNER}") as stream:
                return str(json.loads(stream.read())["ledger"])
        except FileNotFoundError:
            _refuse_former(self._fs, self._root)
            return None
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(_OWNER, f"cannot be read ({error}): check the permissions, or {_RESTORE}") from error

    def claim(self, ledger: str) -> None:
        """Record which ledger the files belong to. A deployment with another ledger would delete them as leftovers."""
        self._put(_OWNER, json.dumps({"ledger": ledger}).encode() + b"\n")

    # ---- reports of jobs -----------------------------------------------------------------------------------------------

    def write_result(self, name: str, result: dict[str, Any]) -> str:
        """Write the report of a job and return its path. The caller makes sure that it holds no user or item id."""
        path = f"results/{name}.json"
        self._put(path, json.dumps(result, indent=1).encode() + b"\n")
        return path

    # ---- pieces of a log that is being divided -------------------------------------------------------------------------

    def write_piece(self, name: str, content: bytes) -> None:
        """Write a temporary piece of a log that is being divided.

        No manifest names it, so a sweep deletes it after a crash. The store, unlike a temporary folder, is reachable from all
        nodes, and no piece can be left behind elsewhere.
        """
        self._put(f"pieces/{name}", content, durable=False)

    def open_piece(self, name: str) -> pa.NativeFile:
        """Open a piece for random access.

        Raises:
            StoreError: it is missing or cannot be read.
        """
        try:
            return self._fs.open_input_file(f"{self._root}/pieces/{name}")
        except OSError as error:
            raise StoreError(f"pieces/{name}", f"cannot be read ({error}): train again") from error

    def drop_pieces(self) -> None:
        """Delete all pieces."""
        try:
            self._fs.delete_dir(f"{self._root}/pieces")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError("pieces", f"cannot be deleted ({error}): check the permissions") from error

    # ---- files ---------------------------------------------------------------------------------------------------------

    def read(self, ref: FileRef) -> bytes:
        """Read a file and check its digest.

        Raises:
            StoreError: the file is missing, cannot be read, or does not match its digest.
        """
        with _reading(self._fs, self._root, ref) as stream:
            content: bytes = stream.read()
        _check_digest(ref, hashlib.sha256(content).hexdigest())
        return content

    def verify(self, ref: FileRef) -> None:
        """Read a file and check its digest block by block, so that a large file needs little memory.

        Raises:
            StoreError: as `read`.
        """
        found = hashlib.sha256()
        with _reading(self._fs, self._root, ref) as stream:
            while block := stream.read(_BLOCK):
                found.update(block)
        _check_digest(ref, found.hexdigest())

    def restore(self, ref: FileRef, content: bytes) -> None:
        """Write a damaged or missing file again.

        Raises:
            StoreError: the content does not match the digest, or cannot be written. Nothing was changed.
        """
        _refuse_strange(ref.path, "written")
        _check_digest(ref, hashlib.sha256(content).hexdigest())
        self._put(ref.path, content)

    def files(self) -> list[str]:
        """Sorted paths of all files in this class's layout, unfinished ones included."""
        return sorted(path for path in self.everything() if _OWN_FILES.fullmatch(path))

    def everything(self) -> list[str]:
        """Sorted paths of all files under the storage path, including files of other programs."""
        infos = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True, recursive=True))
        start = len(self._root.rstrip("/")) + 1  # faster than relpath, and every erasure asks for it
        return sorted(info.path[start:] for info in infos if info.type == fs.FileType.File)

    def delete(self, path: str) -> None:
        """Delete a file. A missing file is not an error, so a purge can be repeated.

        Empty folders are deleted too, because a folder's name would reveal a former shard.

        Raises:
            StoreError: the file cannot be deleted, or this class writes no such file. Lists of files to delete come from the
                ledger, and an altered ledger must not delete other files.
        """
        _refuse_strange(path, "deleted")
        try:
            self._fs.delete_file(f"{self._root}/{path}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(path, _failure("deleted", error, "check the permissions")) from error
        if self.local_folder is not None:
            for folder in list(PurePath(path).parents)[:-1]:
                with suppress(OSError):  # it is not empty, or already gone
                    (self.local_folder / folder).rmdir()

    def _write(self, stem: str, suffix: str, content: bytes) -> FileRef:
        digest = hashlib.sha256(content).hexdigest()
        path = f"{stem}{digest}.{suffix}" if stem.endswith("/") else f"{stem}-{digest}.{suffix}"
        self._put(path, content)
        return FileRef(path, digest)

    def _put(self, path: str, content: bytes, *, durable: bool = True) -> None:
        target = f"{self._root}/{path}"
        try:
            if self.local_folder is None:
                with self._fs.open_output_stream(target) as stream:  # the object appears as a whole, when the stream closes
                    stream.write(content)
            else:
                _write_whole(Path(target), content, durable=durable)
        except OSError as error:
            raise StoreError(path, _failure("written", error, "check space and permissions")) from error


def _refuse_former(files: fs.FileSystem, root: str) -> None:
    """Refuse files of an earlier version, which would be deleted as leftovers."""
    if files.get_file_info(f"{root}/{_FORMER_OWNER}").type == fs.FileType.File:
        raise StoreError(
            _FORMER_OWNER,
            f"this storage path has format 1, and this version reads format {_FORMAT}: train again from the log with "
            "another storage path, and delete this one",
        )


def manifest_ref(digest: str) -> FileRef:
    """The file of the manifest with this digest."""
    return FileRef(f"generations/{digest}.json", digest)


def embeddings_bytes(embeddings: KeyedEmbeddings) -> bytes:
    """Content of the file of a submodel or an aggregate. Equal vectors give equal bytes."""
    return _to_safetensors(embeddings.arrays())


def checkpoint_bytes(state: TrainingState) -> bytes:
    """Content of the file of a training state. Equal arrays give equal bytes."""
    return _to_safetensors(state.arrays())


def part_bytes(part: Part) -> bytes:
    """Content of the file of one vocabulary part. Equal ids give equal bytes."""
    return _to_parquet(pa.table({"key": part.keys, "id": part.ids}))


def shard_data_bytes(data: ShardData) -> bytes:
    """Content of the file of a shard's interactions. Equal pairs give equal bytes."""
    counts = {
        name: np.bincount(part.users, minlength=len(data.user_keys)).astype(np.int32)
        for name, part in (("train", data.train), ("valid", data.valid))
    }
    items = {"train_items": data.train.items, "valid_items": data.valid.items}
    return _to_safetensors({"user_keys": data.user_keys, "item_keys": data.item_keys, **counts, **items})


def _kept_parts(vocabulary: Vocabulary) -> list[int]:
    """Numbers of the parts that have a file. Parts without ids have none."""
    return [number for number, part in enumerate(vocabulary.parts) if len(part)]


def _to_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    return bytes(save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _table_of(ref: FileRef, content: bytes, columns: list[str]) -> pa.Table:
    try:
        # In this thread: Arrow's threads can briefly outlive the interpreter and abort a process at its exit.
        return pq.ParquetFile(pa.BufferReader(content)).read(columns=columns, use_threads=False)
    except pa.ArrowInvalid as error:
        raise StoreError(ref.path, f"is not the expected Parquet file ({error}): {_RESTORE}") from error


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


@contextmanager
def _reading(files: fs.FileSystem, root: str, ref: FileRef) -> Iterator[pa.NativeFile]:
    try:
        with files.open_input_file(f"{root}/{ref.path}") as stream:
            yield stream
    except FileNotFoundError as error:
        raise StoreError(ref.path, "is missing: restore the storage path from a copy, or train again") from error
    except OSError as error:
        raise StoreError(ref.path, f"cannot be read ({error}): check the disk and the permissions") from error


def _check_digest(ref: FileRef, found: str) -> None:
    if found != ref.digest:
        raise StoreError(ref.path, f"is damaged (its digest differs): {_RESTORE}")


def _refuse_strange(path: str, done: str) -> None:
    """Refuse a path outside this class's layout, such as one that leads out of the storage path."""
    if not _OWN_FILES.fullmatch(path):
        problem = f"is not a file of a deployment and was not {done}: the ledger was altered, restore it from a copy"
        raise StoreError(one_line(path, 200), problem)


def _failure(done: str, error: OSError, usual: str) -> str:
    """One sentence for an operating system's error: what failed, why, and what to do."""
    return f"cannot be {done} ({error.strerror or error}): {_WAYS_OUT.get(error.errno or 0, usual)}"


def private_folder(folder: Path) -> list[Path]:
    """Make a folder and its missing parents, readable by their owner only, whatever the umask.

    Returns:
        The new folders, deepest first. Existing folders keep their mode.
    """
    try:
        folder.mkdir(_PRIVATE_FOLDER)
    except FileExistsError:
        if folder.is_dir():
            return []
        raise
    except FileNotFoundError:
        above = private_folder(folder.parent)
        return [*private_folder(folder), *above]
    with _without_modes():
        folder.chmod(_PRIVATE_FOLDER)  # a umask may have removed the owner's own bits
    return [folder]


def private_file(file: Path) -> IO[bytes]:
    """Open a new file for writing, readable by its owner only, whatever the umask. It must not exist yet."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_FILE)
    try:
        with _without_modes():
            os.fchmod(descriptor, _PRIVATE_FILE)
        return os.fdopen(descriptor, "wb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _without_modes() -> Iterator[None]:
    """Ignore a file system without modes, such as a Windows share; `ray-eraser doctor` warns about readable files."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):
            raise


def _write_whole(target: Path, content: bytes, *, durable: bool) -> None:
    """Write a file atomically. If durable, it survives a power failure: the ledger must name only files that the disk has."""
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex}")
    made: list[Path] = []
    try:
        with _opened(partial, made) as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(target)
    except BaseException:
        _take_back(partial, made)
        raise
    if not durable:
        return
    for folder in (target.parent, *(new.parent for new in made)):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opened(file: Path, made: list[Path]) -> IO[bytes]:
    """Open a new file. Its folder is made again if a concurrent deletion removed it.

    Args:
        file: the new file.
        made: new folders are appended to it.
    """
    try:
        made += private_folder(file.parent)
        return private_file(file)
    except FileNotFoundError:
        made += private_folder(file.parent)
        return private_file(file)


def _take_back(file: Path, folders: Iterable[Path]) -> None:
    """Delete the file and the folders that a failed write made. Errors are ignored; the write's own error is reported."""
    with suppress(OSError):
        file.unlink()
    for folder in folders:
        with suppress(OSError):  # it is no longer empty
            folder.rmdir()
