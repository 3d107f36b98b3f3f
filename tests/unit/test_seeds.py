from __future__ import annotations

import numpy as np
import pytest

from ray_eraser.seeds import derive, hash_ids, mix, normal_rows, secret, uniform

LARGEST = 2**64 - 1


def keys_of(*values) -> np.ndarray:
    return np.array(values, np.uint64)


def test_seeds_are_the_same_as_in_the_first_release():
    # printf 0/shard/3/dropout | b2sum -l 256: the first eight bytes, little-endian, halved.
    assert derive(0, "shard", 3, "dropout") == int.from_bytes(bytes.fromhex("78ff7cba75332704"), "little") >> 1
    assert derive(7, "aggregation") == int.from_bytes(bytes.fromhex("0ea2ff2c22551d4a"), "little") >> 1


def test_every_purpose_and_every_root_has_its_own_seed():
    paths = [(root, "shard", shard, purpose) for root in range(5) for shard in range(20) for purpose in ("train", "dropout")]
    assert len({derive(*path) for path in paths}) == len(paths)


def test_seeds_fit_into_63_bits():
    assert all(0 <= derive(root, "x") < 2**63 for root in (0, 1, 2**63 - 1))
    assert max(derive(0, i) for i in range(200)) > 2**62


def test_secrets_are_32_bytes_and_differ_by_purpose():
    assert len(secret(0, "users")) == 32
    assert len({secret(0, "users"), secret(0, "items"), secret(1, "users")}) == 3


def test_mix_is_splitmix64():
    # The first three numbers of splitmix64 with seed 0, as published by its authors.
    assert mix(keys_of(0, 0, 0), keys_of(0, 1, 2)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_mix_takes_keys_and_salts_of_any_size_without_a_warning():
    mixed = mix(keys_of(0, 1, LARGEST), 2**63 - 1)
    assert mixed.dtype == np.uint64
    assert len(set(mixed.tolist())) == 3


def test_keyed_hashes_depend_only_on_the_id_and_the_key():
    hashed = hash_ids([b"ann", b"bob", b"ann"], b"key")
    assert hashed.dtype == np.uint64
    assert hashed[0] == hashed[2] != hashed[1]
    assert hash_ids([b"bob"], b"key")[0] == hashed[1]
    assert hash_ids([b"ann"], b"another")[0] != hashed[0]
    assert hash_ids([], b"key").shape == (0,)


def test_uniform_numbers_stay_inside_the_open_interval():
    lowest, middle, highest = uniform(keys_of(0, 2**63, LARGEST)).tolist()
    assert 0 < lowest < 1e-15
    assert middle == pytest.approx(0.5)
    assert 1 - 1e-15 < highest < 1


def test_uniform_numbers_of_hashed_keys_are_spread_evenly():
    numbers = uniform(mix(np.arange(100_000, dtype=np.uint64), 3))
    counts = np.histogram(numbers, bins=10, range=(0, 1))[0]
    assert counts == pytest.approx(np.full(10, 10_000), abs=5 * 95)  # sqrt(100,000 * .1 * .9) = 95


def test_normal_rows_have_the_moments_of_the_normal_distribution():
    numbers = normal_rows(np.arange(20_000, dtype=np.uint64), 1, 10).astype(np.float64).ravel()  # 200,000
    # Five standard errors of each moment: the variances of x, x^2, x^3 and x^4 are 1, 2, 15 and 96.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (numbers**power).mean() == pytest.approx(expected, abs=5 * (variance / len(numbers)) ** 0.5)


def test_columns_and_neighbouring_rows_of_normal_rows_are_uncorrelated():
    rows = normal_rows(np.arange(20_000, dtype=np.uint64), 1, 5).astype(np.float64)
    together = np.hstack([rows[:-1], rows[1:]])
    correlations = np.corrcoef(together, rowvar=False) - np.eye(10)
    assert abs(correlations).max() < 5 * 20_000**-0.5


def test_a_row_depends_only_on_its_key_the_seed_and_the_column():
    keys = keys_of(5, 0, LARGEST, 12345)
    rows = normal_rows(keys, 9, 6)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert normal_rows(keys[[3, 1]], 9, 6).tolist() == rows[[3, 1]].tolist()
    assert normal_rows(keys, 9, 2).tolist() == rows[:, :2].tolist()
    assert not np.isin(normal_rows(keys, 10, 6), rows).any()


@pytest.mark.parametrize(("keys", "width"), [((), 4), ((1, 2), 0)])
def test_tables_without_rows_or_columns_are_allowed(keys, width):
    assert normal_rows(keys_of(*keys), 0, width).shape == (len(keys), width)
