"""Random numbers derived from names. The same name gives the same numbers on every machine, whatever ran before.

There are two kinds. `derive` returns one seed per purpose, for generators that draw in sequence. `uniform` and `normal_rows`
are counter-based: the numbers of an id depend only on its key, so removing another id does not change them.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def secret(root: int, *path: str | int) -> bytes:
    """32 bytes for keyed hashing, derived from the root seed and a purpose."""
    return hashlib.blake2b("/".join(map(str, (root, *path))).encode(), digest_size=32).digest()


def derive(root: int, *path: str | int) -> int:
    """A seed in 0 .. 2^63 - 1 for one purpose, such as `derive(root, "shard", 3, "dropout")`."""
    return int.from_bytes(secret(root, *path)[:8], "little") >> 1


def hash_ids(ids: list[bytes], key: bytes) -> np.ndarray:
    """Keyed 64-bit hash of every id, (n,) uint64: blake2b with `key`, so that no one without the key can choose a hash."""
    hashed = b"".join(hashlib.blake2b(raw, digest_size=8, key=key).digest() for raw in ids)
    return np.frombuffer(hashed, dtype="<u8").astype(np.uint64)


def mix(keys: np.ndarray, salt: np.ndarray | int) -> np.ndarray:
    """Scatter 64-bit keys with a salt, elementwise; the finaliser of splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        z = keys.astype(np.uint64) + (np.asarray(salt).astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(keys: np.ndarray) -> np.ndarray:
    """Map keys to numbers in the open interval (0, 1), float64. It uses 52 bits, because with 53 the highest rounds to 1."""
    return ((keys >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal_rows(keys: np.ndarray, seed: int, width: int) -> np.ndarray:
    """Standard normal numbers, (len(keys), width) float32. Row i depends only on keys[i], the seed and the column."""
    columns = mix(np.arange(width, dtype=np.uint64), seed)
    return np.asarray(ndtri(uniform(mix(mix(keys, seed)[:, None], columns[None, :]))), np.float32)
