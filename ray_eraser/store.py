"""Everything that a deployment keeps, as files under its storage path.

Files are immutable and named by the SHA-256 of their content; a manifest lists those of one generation and is written last.
Which generation is current stands in the ledger, because object stores have no atomic rename. Parquet for interactions and
vocabularies, safetensors for vectors, JSON for manifests; nothing that runs code when it is read.

    vocabulary/users-<digest>.parquet         id (null: erased)
    vocabulary/items-<digest>.parquet         id, key (keyed hash of the id, 0 where erased)
    shards/<k>/interactions-<digest>.parquet  user, item (rows), held_out
    shards/<k>/submodel-<digest>.safetensors
    shards/<k>/checkpoint-<digest>.safetensors  the state of training after a stage (`training.slices`)
    aggregate/aggregate-<digest>.safetensors
    generations/<digest>.json
    pieces/<name>                               of a log that is being divided (`ingest`); gone when it is
    deployment.json                             to which ledger all this belongs
    results/<name>.json                         what jobs reported; of no generation, and never deleted
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ray_eraser.config import EraserConfig, config_from
from ray_eraser.data.interactions import Interactions
from ray_eraser.data.vocabulary import Vocabulary
from ray_eraser.embeddings import Embeddings
from ray_eraser.errors import ConfigError, InputError, StoreError
from ray_eraser.ids import ShardId
from ray_eraser.models.base import TrainingState

_FORMAT = 1
_OWNER = "deployment.json"
_OWN_FILES = re.compile(
    r"((vocabulary|shards/\d+|aggregate|generations)/[a-z]*-?[0-9a-f]{64}\.(parquet|safetensors|json)|pieces/[a-z]+-?\d*)"
    r"(\.partial-.*)?"
)


@dataclass(frozen=True)
class FileRef:
    """A stored file: where it is under the storage path, and the digest that its content must have."""

    path: str
    digest: str


@dataclass(frozen=True)
class ShardRecord:
    """What one shard consists of in one generation.

    Attributes:
        checkpoints: the state of training after every stage but the last, in order; none without slices.
    """

    shard: ShardId
    interactions: FileRef
    submodel: FileRef
    n_train: int
    n_valid: int
    checkpoints: tuple[FileRef, ...] = ()


@dataclass(frozen=True)
class ShardData:
    """A shard's interactions: what its submodel learns from and what it may look at to stop."""

    train: Interactions
    valid: Interactions

    def without(self, erased: Interactions) -> ShardData:
        return ShardData(self.train.without(erased), self.valid.without(erased))

    def with_learned(self, learned: Interactions) -> ShardData:
        """What came later is all trained on: nothing of it is held out."""
        return ShardData(Interactions.union([self.train, learned]), self.valid)

    def __len__(self) -> int:
        return len(self.train) + len(self.valid)


@dataclass(frozen=True)
class Manifest:
    """One generation: every file of it, and all that its bits depend on. Says nothing of time or of what came before."""

    config: EraserConfig
    environment: dict[str, str | int]
    users: FileRef
    items: FileRef
    shards: tuple[ShardRecord, ...]
    aggregate: FileRef

    def files(self) -> list[FileRef]:
        """All files that this generation needs, itself not among them."""
        parts = [ref for record in self.shards for ref in (record.interactions, record.submodel, *record.checkpoints)]
        return [self.users, self.items, *parts, self.aggregate]

    @property
    def n_interactions(self) -> int:
        """Interactions that are learned from."""
        return sum(record.n_train for record in self.shards)

    def to_json(self) -> bytes:
        fields = asdict(self) | {"config": self.config.model_dump(mode="json"), "format": _FORMAT}
        return (json.dumps(fields, sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, text: bytes) -> Manifest:
        fields: dict[str, Any] = json.loads(text)
        if fields["format"] != _FORMAT:
            raise ValueError(f"format {fields['format']}, this version reads {_FORMAT}")
        return cls(
            config_from(fields["config"]),
            fields["environment"],
            FileRef(**fields["users"]),
            FileRef(**fields["items"]),
            tuple(
                ShardRecord(
                    ShardId(record["shard"]),
                    FileRef(**record["interactions"]),
                    FileRef(**record["submodel"]),
                    record["n_train"],
                    record["n_valid"],
                    tuple(FileRef(**ref) for ref in record.get("checkpoints", ())),  # older ones have none
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
        """The folder, where the store is local; None on object stores."""
        return Path(self._root) if isinstance(self._fs, fs.LocalFileSystem) else None

    # ---- what is stored ------------------------------------------------------------------------------------------------

    def write_vocabulary(self, vocabulary: Vocabulary, keys: np.ndarray | None = None) -> FileRef:
        present = [raw for raw in vocabulary.ids if raw is not None]
        kind = pa.int64() if all(isinstance(raw, int) for raw in present) else pa.string()
        columns = {"id": pa.array(vocabulary.ids, kind)}
        if keys is not None:
            columns["key"] = pa.array(keys, pa.uint64())
        return self._write(f"vocabulary/{vocabulary.kind}s", "parquet", _to_parquet(pa.table(columns)))

    def read_vocabulary(self, ref: FileRef, kind: str) -> Vocabulary:
        return Vocabulary(kind, tuple(self._read_parquet(ref, ["id"])["id"].to_pylist()))

    def read_item_keys(self, ref: FileRef) -> np.ndarray:
        """(I,) uint64, the keyed hash of every item's id."""
        return np.asarray(self._read_parquet(ref, ["key"])["key"].to_numpy())

    def write_shard_data(self, shard: ShardId, data: ShardData) -> FileRef:
        return self._write(f"shards/{shard}/interactions", "parquet", shard_data_bytes(data))

    def read_shard_data(self, ref: FileRef) -> ShardData:
        table = self._read_parquet(ref, ["user", "item", "held_out"])
        users, items, held = (table[name].to_numpy() for name in ("user", "item", "held_out"))
        return ShardData(Interactions(users[~held], items[~held]), Interactions(users[held], items[held]))

    def write_submodel(self, shard: ShardId, submodel: Embeddings) -> FileRef:
        return self._write(f"shards/{shard}/submodel", "safetensors", embeddings_bytes(submodel))

    def write_checkpoint(self, shard: ShardId, state: TrainingState) -> FileRef:
        return self._write(f"shards/{shard}/checkpoint", "safetensors", checkpoint_bytes(state))

    def read_checkpoint(self, ref: FileRef) -> TrainingState:
        try:
            return TrainingState.of(load_tensors(self.read(ref)))
        except (SafetensorError, KeyError) as error:
            raise StoreError(ref.path, f"is not a checkpoint ({error})") from error

    def write_aggregate(self, aggregate: Embeddings) -> FileRef:
        return self._write("aggregate/aggregate", "safetensors", embeddings_bytes(aggregate))

    def read_embeddings(self, ref: FileRef) -> Embeddings:
        try:
            return Embeddings(**load_tensors(self.read(ref)))
        except (SafetensorError, TypeError) as error:
            raise StoreError(ref.path, f"is not a file of embeddings ({error})") from error

    def write_manifest(self, manifest: Manifest) -> FileRef:
        """The last file of a generation: once it is there, all the others are."""
        return self._write("generations/", "json", manifest.to_json())

    def read_manifest(self, digest: str) -> Manifest:
        ref = manifest_ref(digest)
        try:
            return Manifest.from_json(self.read(ref))
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            if isinstance(error, ConfigError) and error.key.endswith(".kind"):
                raise  # it is one, of a kind that comes with another package
            raise StoreError(ref.path, f"is not a manifest ({error})") from error

    # ---- whose it is ---------------------------------------------------------------------------------------------------

    def owner(self) -> str | None:
        """The name of the ledger that the files here belong to; None where nobody claimed them."""
        try:
            with self._fs.open_input_file(f"{self._root}/{_OWNER}") as stream:
                return str(json.loads(stream.read())["ledger"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(_OWNER, f"cannot be read ({error})") from error

    def claim(self, ledger: str) -> None:
        """Say to which ledger the files here belong: another one's would take them for leftovers."""
        self._put(_OWNER, json.dumps({"ledger": ledger}).encode() + b"\n")

    # ---- what jobs report ----------------------------------------------------------------------------------------------

    def write_result(self, name: str, result: dict[str, Any]) -> str:
        """Keep what a job reported; its path. Whoever calls this sees to it that no id of a user or an item is in it."""
        path = f"results/{name}.json"
        self._put(path, json.dumps(result, indent=1).encode() + b"\n")
        return path

    # ---- pieces of a log that is being divided -------------------------------------------------------------------------

    def write_piece(self, name: str, content: bytes) -> None:
        """Keep something for as long as a log is being divided. No manifest names it, and a crash's are swept like all else.

        Here and not in a temporary folder, so that all nodes reach it and it cannot be forgotten elsewhere.
        """
        self._put(f"pieces/{name}", content, durable=False)

    def open_piece(self, name: str) -> pa.NativeFile:
        """A piece's content, of which any part can be read.

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
        """A file's content, checked against its digest.

        Raises:
            StoreError: it is missing or its content is not what was written.
        """
        try:
            with self._fs.open_input_file(f"{self._root}/{ref.path}") as stream:
                content: bytes = stream.read()
        except FileNotFoundError as error:
            raise StoreError(ref.path, "is missing: restore the storage path from a copy, or train again") from error
        except OSError as error:
            raise StoreError(ref.path, f"cannot be read ({error})") from error
        if hashlib.sha256(content).hexdigest() != ref.digest:
            raise StoreError(ref.path, "is not what was written (its digest differs): restore it from a copy, or train again")
        return content

    def files(self) -> list[str]:
        """Paths of all files that are laid out as this class lays them out, sorted; unfinished ones among them."""
        return sorted(path for path in self.everything() if _OWN_FILES.fullmatch(path))

    def everything(self) -> list[str]:
        """Paths of all files under the storage path, sorted, whoever made them."""
        infos = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True, recursive=True))
        return sorted(os.path.relpath(info.path, self._root) for info in infos if info.type == fs.FileType.File)

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone already is no error, so that a purge can be repeated."""
        try:
            self._fs.delete_file(f"{self._root}/{path}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(path, f"cannot be deleted ({error}): check the permissions") from error

    def _write(self, stem: str, suffix: str, content: bytes) -> FileRef:
        digest = hashlib.sha256(content).hexdigest()
        path = f"{stem}{digest}.{suffix}" if stem.endswith("/") else f"{stem}-{digest}.{suffix}"
        self._put(path, content)
        return FileRef(path, digest)

    def _put(self, path: str, content: bytes, *, durable: bool = True) -> None:
        target = f"{self._root}/{path}"
        try:
            if self.local_folder is None:
                with self._fs.open_output_stream(target) as stream:  # appears when it is closed, whole
                    stream.write(content)
            else:
                _write_whole(Path(target), content, durable=durable)
        except OSError as error:
            raise StoreError(path, f"cannot be written ({error}): check space and permissions") from error

    def _read_parquet(self, ref: FileRef, columns: list[str]) -> pa.Table:
        try:
            # In this thread: Arrow's own can outlive the interpreter for a moment, and abort a process that is done.
            return pq.ParquetFile(pa.BufferReader(self.read(ref))).read(columns=columns, use_threads=False)
        except pa.ArrowInvalid as error:
            raise StoreError(ref.path, f"is not the Parquet that it should be ({error})") from error


def manifest_ref(digest: str) -> FileRef:
    """Where the manifest with this digest is."""
    return FileRef(f"generations/{digest}.json", digest)


def embeddings_bytes(embeddings: Embeddings) -> bytes:
    """The file of a submodel or an aggregate: same vectors, same bytes."""
    return _to_safetensors(embeddings.arrays())


def checkpoint_bytes(state: TrainingState) -> bytes:
    """The file of a state of training: same arrays, same bytes."""
    return _to_safetensors(state.arrays())


def shard_data_bytes(data: ShardData) -> bytes:
    """The file of a shard's interactions: same pairs, same bytes."""
    held_out = np.repeat([False, True], [len(data.train), len(data.valid)])
    users = np.concatenate([data.train.users, data.valid.users])
    items = np.concatenate([data.train.items, data.valid.items])
    return _to_parquet(pa.table({"user": users, "item": items, "held_out": held_out}))


def _to_safetensors(arrays: dict[str, np.ndarray]) -> bytes:
    return bytes(save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _write_whole(target: Path, content: bytes, *, durable: bool) -> None:
    """Whole or not at all; if durable, there after the power went: the ledger points only to what the disk has."""
    new_folders = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex}")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    if not durable:
        return
    for folder in (target.parent, *(new.parent for new in new_folders)):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
