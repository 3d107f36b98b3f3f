"""What the doctor makes of what it sees."""

from __future__ import annotations

import os

import pytest

from ray_eraser import doctor
from ray_eraser.doctor import Outcome, RayFacts
from ray_eraser.unlearning.request import UnlearningRequest

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /run tmpfs rw 0 0
/dev/vdb /run/disk ext4 rw 0 0
server:/export /mnt/my\\040share nfs4 rw 0 0
overlay /stacked overlay rw 0 0
tmpfs /stacked tmpfs rw 0 0
nonsense
"""


def outcomes(found):
    return [advice.outcome for advice in found]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (RayFacts("127.0.0.1:8265", asks_for_token=True, sends_token=True), [Outcome.OK, Outcome.OK]),
        (RayFacts("[::1]:8265", asks_for_token=True, sends_token=True), [Outcome.OK, Outcome.OK]),
        (RayFacts("192.0.2.7:8265", asks_for_token=True, sends_token=True), [Outcome.WARN, Outcome.OK]),
        (RayFacts("0.0.0.0:8265", asks_for_token=False, sends_token=False), [Outcome.WARN, Outcome.WARN]),
        (RayFacts("127.0.0.1:8265", asks_for_token=False, sends_token=True), [Outcome.OK, Outcome.WARN]),
        (RayFacts("", asks_for_token=None, sends_token=True), [Outcome.OK, Outcome.OK]),
        (RayFacts("", asks_for_token=None, sends_token=False), [Outcome.OK, Outcome.WARN]),
        (None, [Outcome.UNCHECKED, Outcome.UNCHECKED]),
    ],
)
def test_a_ray_that_others_can_use_is_warned_of(facts, expected):
    assert outcomes(doctor.check_ray(facts)) == expected


def test_a_secret_that_others_can_read_is_warned_of_with_the_way_out(tmp_path):
    secret = tmp_path / "secret"
    assert outcomes(doctor.check_files({"key": secret})) == [Outcome.UNCHECKED]
    secret.write_text("s")
    secret.chmod(0o600)
    assert outcomes(doctor.check_files({"key": secret})) == [Outcome.OK]
    for mode in (0o640, 0o604, 0o620):
        secret.chmod(mode)
        (advice,) = doctor.check_files({"key": secret})
        assert advice.outcome is Outcome.WARN
        assert advice.way_out.startswith(f"chmod 600 {secret}")


@pytest.mark.parametrize(
    ("above", "itself", "is_open"),
    [
        (0o755, 0o700, False),
        (0o755, 0o755, True),
        (0o755, 0o750, True),
        (0o755, 0o711, True),  # names can be guessed: they are hashes, but who knows one can read it
        (0o700, 0o755, False),
        (0o710, 0o705, False),
        (0o710, 0o750, True),
    ],
)
def test_a_folder_is_open_where_others_can_get_to_it(tmp_path, monkeypatch, above, itself, is_open):
    # Only the two folders of the test count: where tests run is another machine's matter.
    folder = tmp_path / "above" / "itself"
    folder.mkdir(parents=True)
    real = os.stat
    modes = {str(folder): itself, str(folder.parent): above}

    def stat(path, **kwargs):
        seen = list(real(path, **kwargs))
        seen[0] = seen[0] & ~0o777 | modes.get(str(path), 0o755)
        return os.stat_result(seen)

    monkeypatch.setattr(type(folder), "stat", lambda self, **kwargs: stat(str(self), **kwargs))
    assert doctor.is_open_to_others(folder) is is_open
    assert (doctor.check_storage_private(folder).outcome is Outcome.WARN) is is_open


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/data", "ext4"),
        ("/run/x", "tmpfs"),
        ("/runner/x", "ext4"),
        ("/run/disk/x", "ext4"),
        ("/mnt/my share/x", "nfs4"),
        ("/stacked/x", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_deepest_and_newest_mount(path, kind, tmp_path):
    assert doctor.file_system(type(tmp_path)(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("path", "database", "outcome"),
    [
        ("/srv/data", True, Outcome.OK),
        ("/run/data", False, Outcome.WARN),
        ("/run/data", True, Outcome.WARN),
        ("/mnt/my share/ledger.db", True, Outcome.WARN),
        ("/mnt/my share", False, Outcome.OK),
    ],
)
def test_memory_is_no_place_for_promises_and_a_network_none_for_sqlite(path, database, outcome, tmp_path):
    assert doctor.check_lasting("it", type(tmp_path)(path), MOUNTS, database=database).outcome is outcome


def test_without_mounts_nothing_is_claimed(tmp_path):
    assert doctor.check_lasting("it", tmp_path, "", database=True).outcome is Outcome.UNCHECKED


def test_all_that_is_stored_must_find_room_once_more(tmp_path):
    gib = 1 << 30
    assert doctor.check_space(tmp_path, used=10, free=gib).outcome is Outcome.OK
    assert doctor.check_space(tmp_path, used=10, free=gib - 1).outcome is Outcome.WARN
    assert doctor.check_space(tmp_path, used=10 * gib, free=19 * gib).outcome is Outcome.WARN
    assert "1.0 GiB free, 10 B stored" in doctor.check_space(tmp_path, used=10, free=gib).detail
    assert doctor.check_space(tmp_path, used=0).outcome in (Outcome.OK, Outcome.WARN)


def test_a_clock_behind_the_ledger_is_warned_of():
    assert doctor.check_clock(1000.0, 990.0).outcome is Outcome.OK
    assert doctor.check_clock(1000.0, 1030.0).outcome is Outcome.OK
    assert doctor.check_clock(1000.0, 2000.0).outcome is Outcome.WARN
    assert doctor.check_clock(1000.0, None).outcome is Outcome.UNCHECKED


def test_requests_that_are_late_or_failed_are_warned_of():
    assert outcomes(doctor.check_requests(0, [], 30)) == [Outcome.OK, Outcome.OK]
    late, aside = doctor.check_requests(2, ["a", "b", "c", "d"], 30)
    assert (late.outcome, aside.outcome) == (Outcome.WARN, Outcome.WARN)
    assert "2 requests wait longer than unlearning.deadline_days=30" in late.detail
    assert "a, b, c" in aside.detail


def test_every_warning_says_the_way_out(tmp_path):
    found = [
        *doctor.check_ray(RayFacts("0.0.0.0:8265", asks_for_token=False, sends_token=False)),
        doctor.check_lasting("it", type(tmp_path)("/run/x"), MOUNTS, database=True),
        doctor.check_space(tmp_path, 0, 0),
        doctor.check_clock(0.0, 1e9),
        *doctor.check_requests(1, ["a"], 30),
    ]
    assert outcomes(found) == [Outcome.WARN] * 7
    assert all(advice.way_out for advice in found)


def test_the_ledger_tells_its_newest_time_and_its_erasures(deployments, trained, tiny):
    coordinator = deployments.copy(trained, "looked-at")
    ledger = coordinator._ledger
    assert ledger.newest_time() == 1000  # the clock of the deployments here
    first = coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[0]))
    second = coordinator.submit(UnlearningRequest(user_id=tiny.users.ids[1]))
    assert [row["request_id"] for row in coordinator.erasures(finished=False)] == [first.request_id, second.request_id]
    assert [row["request_id"] for row in coordinator.erasures(1, finished=False)] == [first.request_id]
    assert coordinator.erasures(finished=True) == []
    coordinator.process_pending()
    done = coordinator.erasures(finished=True)
    assert [row["request_id"] for row in done] == [second.request_id, first.request_id]
    assert all(row["finished_at"] >= row["received_at"] and row["state"] == "erased" for row in done)
    assert all(row.work is None and row.salt is None for row in ledger.erasures(10, finished=True))


H100 = {"device": "NVIDIA H100 80GB HBM3", "capability": "9.0", "cuda": "13.0"}


@pytest.mark.parametrize(
    ("trained_on", "gpus", "outcome", "seen"),
    [
        (None, 0.0, Outcome.UNCHECKED, "nothing is published yet"),
        ({"device": "cpu"}, None, Outcome.OK, "trained on the CPU"),
        (H100, None, Outcome.UNCHECKED, "no Ray answers"),
        (H100, 0.0, Outcome.WARN, "no erasure can be completed"),
        (H100, 2.0, Outcome.OK, "Ray has 2 GPUs"),
    ],
)
def test_a_deployment_of_gpus_is_warned_of_where_ray_has_none(trained_on, gpus, outcome, seen):
    advice = doctor.check_device(trained_on, gpus)
    assert advice.outcome is outcome
    assert seen in advice.detail
    assert ("runtime.device=cpu" in advice.way_out) is (outcome is Outcome.WARN)
