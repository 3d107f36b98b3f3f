"""The served vectors for whoever serves them elsewhere: with raw ids, as files that NumPy and Parquet read.

**Copies that were handed out do not forget.** An erasure reaches what a deployment stores and serves, never a vector index that
was filled from it. Whoever fills one exports anew after every erasure that a receipt reports, replaces all that is in the index
(not only the erased rows: all vectors may have changed), and deletes the older files. The generation's number and digest stand
beside the vectors so that a copy can be told from the one that is served.
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
    """Vectors of every user and item that has one; the score of a pair is their inner product. Copies do not forget.

    Attributes:
        generation: number of the generation that they were made from.
        digest: of its manifest.
        serving: `generation`, or `excision` while shards are trained anew: then they are that generation without what was asked
            to be forgotten since.
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
        """A model's vectors by raw ids; what has no id any more is left out."""
        user_ids, users_UD = _named(users, model.user_keys, model.users)
        item_ids, items_ID = _named(items, model.item_keys, model.items)
        return cls(generation, digest, serving, user_ids, users_UD, item_ids, items_ID)

    def about(self) -> dict[str, Any]:
        """What the vectors are, in plain values; names nobody."""
        return {
            "generation": self.generation,
            "digest": self.digest,
            "serving": self.serving,
            "width": int(self.items.shape[1]),
            "n_users": len(self.user_ids),
            "n_items": len(self.item_ids),
        }

    def write(self, folder: Path) -> list[Path]:
        """Write `vectors.npz` (`users`, `items`), `users.parquet`, `items.parquet` (`id`, in the order of the vectors) and
        `about.json` (generation and digest), the last one at the end.

        Raises:
            InputError: a file cannot be written.
        """
        files = [folder / name for name in ("vectors.npz", "users.parquet", "items.parquet", "about.json")]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files[3].unlink(missing_ok=True)  # until all is written, nothing says what the others are
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
