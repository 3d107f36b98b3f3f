"""Export the served vectors with raw ids, as NumPy and Parquet files, to serve them elsewhere.

**Exported copies do not forget.** An erasure changes the data that a deployment stores and serves, never a vector index that
was filled from it. If you fill an index, export again after every erasure that a receipt reports. Replace the whole index, not
only the erased rows, because all vectors may have changed. Then delete the older files. The files include the generation's
number and digest, so that you can compare a copy with the served generation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_eraser.data.keyed import places_of
from ray_eraser.data.vocabulary import Vocabulary, id_column
from ray_eraser.embeddings import KeyedEmbeddings
from ray_eraser.errors import InputError
from ray_eraser.ids import Generation, RawId


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of every user and item that has one. The score of a pair is their inner product. Copies do not forget.

    Attributes:
        generation: the number of the generation that the vectors come from.
        digest: the digest of the generation's manifest.
        serving: `generation`, or `excision` while shards are retrained. An excision is the generation without the data that was
            requested to be erased since.
        user_ids: raw ids, in the order of `users`.
        users: (U', D) float32.
        item_ids: raw ids, in the order of `items`.
        items: (I', D) float32.
    """

    generation: Generation
    digest: str
    serving: str
    user_ids: tuple[RawId, ...]
    users: np.ndarray
    item_ids: tuple[RawId, ...]
    items: np.ndarray

    @classmethod
    def of(
        cls,
        model: KeyedEmbeddings,
        users: Vocabulary,
        items: Vocabulary,
        generation: Generation,
        digest: str,
        serving: str,
    ) -> Vectors:
        """Make it from a model and the vocabularies. Users and items without an id in the vocabulary are left out."""
        user_ids, users_UD = _named(users, model.user_keys, model.users)
        item_ids, items_ID = _named(items, model.item_keys, model.items)
        return cls(generation, digest, serving, user_ids, users_UD, item_ids, items_ID)

    def about(self) -> dict[str, Any]:
        """A description of the vectors in plain values, without any id."""
        return {
            "generation": self.generation,
            "digest": self.digest,
            "serving": self.serving,
            "width": int(self.items.shape[1]),
            "n_users": len(self.user_ids),
            "n_items": len(self.item_ids),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write the vectors to a folder.

        The files are `vectors.npz` (`users`, `items`), `users.parquet` and `items.parquet` (`id`, in the order of the vectors),
        and `about.json` (generation and digest), which is written last.

        Raises:
            InputError: a file cannot be written.
        """
        files = [folder / name for name in ("vectors.npz", "users.parquet", "items.parquet", "about.json")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files[3].unlink(missing_ok=True)  # an interrupted export must not leave a description of other files
            np.savez(files[0], users=self.users, items=self.items)
            pq.write_table(pa.table({"id": id_column(self.user_ids)}), files[1])
            pq.write_table(pa.table({"id": id_column(self.item_ids)}), files[2])
            files[3].write_text(json.dumps(self.about(), indent=1) + "\n", "utf-8")
        except OSError as error:
            raise InputError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error
        return files


def _named(vocabulary: Vocabulary, keys: np.ndarray, vectors: np.ndarray) -> tuple[tuple[RawId, ...], np.ndarray]:
    rows = places_of(keys, vocabulary.keys)
    return tuple(vocabulary.raw(rows[rows >= 0])), vectors[rows >= 0]
