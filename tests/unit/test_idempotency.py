"""What is kept of idempotency keys: enough to know a repetition, and nothing from which a key could be found."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from conftest import Deployments, digest_of
from plain import Plain

from ray_eraser import seeds
from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import ConfigError, RequestError, UnknownIdError
from ray_eraser.unlearning.idempotency import KeyHash
from ray_eraser.unlearning.request import RequestState, UnlearningRequest


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder for state, as if nothing had ever been kept there."""
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def coordinator(state: Path, deployments: Deployments, trained: Path) -> Coordinator:
    return deployments.copy(trained, "shop")


def the_secret(folder: Path) -> Path:
    """The one file that is kept there, whole."""
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def with_folder(config: EraserConfig, folder: Path) -> EraserConfig:
    return config.model_copy(update={"unlearning": config.unlearning.model_copy(update={"key_folder": str(folder)})})


# ---- the secret


def test_the_secret_is_random_private_and_of_one_ledger(state: Path, tmp_path: Path) -> None:
    hashes = {}
    for folder, name in product(("", str(tmp_path / "other")), ("one", "two")):
        hashes[folder, name] = KeyHash.of(folder, name)("key")
        assert KeyHash.of(folder, name)("key") == hashes[folder, name]  # as after a restart
    assert len(set(hashes.values())) == 4
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    expected = [tmp_path / place / f"{name}.key" for place, name in product(("other", "state/ray_eraser"), ("one", "two"))]
    assert files == sorted(expected)
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert len(file.read_bytes()) == 32
    assert len({file.read_bytes() for file in files}) == 4


def test_several_that_start_at_once_end_with_one_secret(state: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        hashes = list(threads.map(lambda _: KeyHash.of("", "shop")("key"), range(32)))
    assert len(set(hashes)) == 1
    assert the_secret(state).name == "shop.key"


def test_without_a_key_there_is_nothing_to_keep_and_a_key_is_text_of_some_length() -> None:
    hashed = KeyHash(lambda: b"x" * 32)
    assert hashed(None) is None
    assert hashed("a") != hashed("b")
    for key in ("", " ", "x" * 201, "a\0b"):
        with pytest.raises(RequestError, match="the idempotency key"):
            hashed(key)


@pytest.fixture
def file_in_the_way(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "a file"
    file.write_text("here first")
    yield file
    assert file.read_text() == "here first"


def test_a_folder_that_was_named_and_cannot_be_used_is_refused(file_in_the_way: Path) -> None:
    with pytest.raises(ConfigError, match="choose a private folder") as caught:
        KeyHash.of(str(file_in_the_way), "shop")
    assert caught.value.key == "unlearning.key_folder"


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_file_that_is_no_secret_is_not_taken_for_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "shop.key").write_bytes(content)
    with pytest.raises(ConfigError, match="does not hold 32 bytes"):
        KeyHash.of(str(tmp_path), "shop")
    assert (tmp_path / "shop.key").read_bytes() == content


def test_where_there_is_no_usual_folder_repetitions_are_known_until_a_restart(
    monkeypatch: pytest.MonkeyPatch, file_in_the_way: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(file_in_the_way))
    hashed = KeyHash.of("", "shop")
    assert hashed("key") == hashed("key")
    assert KeyHash.of("", "shop")("key") != hashed("key")
    assert "no folder for the secret of idempotency keys" in caplog.text


# ---- a deployment


def test_the_secret_lies_outside_of_the_storage_path_and_stands_nowhere_in_it(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    user = coordinator._serving.loaded.users.ids[3]
    coordinator.submit(UnlearningRequest(user_id=user), "key")
    coordinator.process_pending()
    secret = the_secret(state).read_bytes()
    kept = [file.read_bytes() for file in Path(deployments.path("shop")).rglob("*") if file.is_file()]
    assert len(kept) > 9
    assert not [content for content in kept if secret in content or secret.hex().encode() in content]


def test_a_named_folder_keeps_it_also_for_who_opens_without_settings(
    deployments: Deployments, trained: Path, tiny_config: EraserConfig, state: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "private"
    coordinator = deployments.copy(trained, "shop", config=with_folder(tiny_config, folder))
    first = coordinator.submit(UnlearningRequest(user_id=1003), "key")
    coordinator.process_pending()
    assert the_secret(folder).name == f"{coordinator._ledger.name}.key"
    assert not state.exists()
    assert deployments.open("shop").submit(UnlearningRequest(user_id=1003), "key").request_id == first.request_id
    assert not state.exists()


def test_a_start_with_a_folder_that_cannot_be_used_leaves_the_coordinator_that_runs_in_force(
    coordinator: Coordinator, deployments: Deployments, tiny_config: EraserConfig, file_in_the_way: Path
) -> None:
    with pytest.raises(ConfigError, match=r"unlearning\.key_folder"):
        deployments.open("shop", with_folder(tiny_config, file_in_the_way))
    coordinator.check_in_force()
    coordinator.submit(UnlearningRequest(user_id=1003), "key")
    assert len(coordinator.process_pending()) == 1


@pytest.mark.parametrize("done", [False, True], ids=["before it is finished", "after it is finished"])
def test_a_repetition_is_known_after_a_restart(coordinator: Coordinator, deployments: Deployments, done: bool) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1003), "key")
    if done:
        coordinator.process_pending()
    opened = deployments.open("shop")
    again = opened.submit(UnlearningRequest(user_id=1003), "key")
    assert again.request_id == first.request_id
    assert len(opened.process_pending()) == (0 if done else 1)
    assert opened.describe().generation == 2


def key_hashes(deployments: Deployments, name: str) -> list[str]:
    with closing(sqlite3.connect(Path(deployments.path(name)) / "ledger.db")) as connection:
        return [hashed for (hashed,) in connection.execute("SELECT key_hash FROM requests WHERE key_hash IS NOT NULL")]


def test_a_key_that_names_a_user_cannot_be_found_with_anything_that_stands_in_the_storage_path(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    """Whoever copies the storage path and the ledger knows the seed, all digests and notes, and guesses well."""
    coordinator.submit(UnlearningRequest(user_id=1007), "erase u7")
    coordinator.process_pending()
    (kept,) = key_hashes(deployments, "shop")
    seed, store = coordinator.config.seed, coordinator._store
    secrets = {b"", str(seed).encode(), coordinator._ledger.name.encode(), bytes.fromhex(coordinator._ledger.name)}
    purposes = ("idempotency", "ids", "keys", "key", "secret", coordinator._ledger.name, "shop")
    secrets |= {seeds.secret(seed, *path) for path in [(), *((purpose,) for purpose in purposes)]}
    for path in store.everything():
        content = (Path(deployments.path("shop")) / path).read_bytes()
        secrets |= {path.encode(), hashlib.sha256(content).digest(), hashlib.sha256(content).hexdigest().encode()}
        if not path.endswith(".safetensors"):
            secrets |= {content[start : start + 32] for start in range(len(content) - 31)}
    guesses = ("erase u7", "u7", "erase 1007", "1007")
    for secret, guess in product(secrets, guesses):
        assert hmac.new(secret, guess.encode(), "sha256").hexdigest() != kept
        assert hashlib.sha256(secret + guess.encode()).hexdigest() != kept
    # With the secret it can: this looks where the hash is.
    assert hmac.new(the_secret(state).read_bytes(), b"erase u7", "sha256").hexdigest() == kept


def test_the_same_key_is_kept_differently_by_two_deployments_of_one_log(
    state: Path, deployments: Deployments, tiny: Dataset, tiny_config: EraserConfig
) -> None:
    for name in ("one", "two"):
        coordinator = deployments.fit(name, tiny_config, tiny)
        coordinator.submit(UnlearningRequest(user_id=1003), "key")
        coordinator.process_pending()
    assert key_hashes(deployments, "one") != key_hashes(deployments, "two")


# ---- when the secret is lost


def test_without_the_secret_a_repetition_of_a_finished_request_is_a_new_one_and_nothing_worse(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1003), "key")
    coordinator.process_pending()
    digest, plain = digest_of(coordinator), Plain(coordinator)
    the_secret(state).unlink()
    opened = deployments.open("shop")
    with pytest.raises(UnknownIdError):  # as for who asks without a key: the user is gone
        opened.submit(UnlearningRequest(user_id=1003), "key")
    assert digest_of(opened) == digest
    assert opened.receipt(first.request_id) is not None
    # A new request under the key has a name and a receipt of its own.
    second = opened.submit(UnlearningRequest(user_id=1006), "key")
    assert second.request_id != first.request_id
    assert opened.submit(UnlearningRequest(user_id=1006), "key").request_id == second.request_id
    assert len(opened.process_pending()) == 1
    plain.erase(UnlearningRequest(user_id=1006))
    assert Plain(opened).pairs == plain.pairs
    assert len(opened._ledger.receipts()) == 2


def test_without_the_secret_a_repetition_about_who_has_come_back_is_a_new_erasure(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1017), "key")
    coordinator.process_pending()
    coordinator.learn([(1017, 902)])
    coordinator.process_pending()
    assert coordinator.submit(UnlearningRequest(user_id=1017), "key").request_id == first.request_id
    the_secret(state).unlink()
    opened = deployments.open("shop")
    assert opened.submit(UnlearningRequest(user_id=1017), "key").request_id != first.request_id
    (receipt,) = opened.process_pending()
    assert (receipt.pairs_erased, receipt.number) == (1, 2)


def test_without_the_secret_what_waits_is_carried_out_as_ever(
    coordinator: Coordinator, deployments: Deployments, state: Path
) -> None:
    coordinator.submit(UnlearningRequest(user_id=1003), "key")
    the_secret(state).unlink()
    opened = deployments.open("shop")
    with pytest.raises(UnknownIdError):  # it is out of what is served already
        opened.submit(UnlearningRequest(user_id=1003), "key")
    learned = opened.learn([(2001, 902)], "key")
    assert len(opened.process_pending()) == 1
    assert opened.status(learned.request_id) is RequestState.DONE
    assert len(the_secret(state).read_bytes()) == 32


def test_a_folder_under_the_storage_path_is_refused_and_nothing_is_started(
    deployments: Deployments, tiny_config: EraserConfig
) -> None:
    inside = Path(deployments.path("shop")) / "keys"
    with pytest.raises(ConfigError, match="under the storage path"):
        deployments.open("shop", with_folder(tiny_config, inside))
    assert not inside.exists()
