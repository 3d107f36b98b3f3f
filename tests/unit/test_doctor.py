"""What the doctor makes of what it sees."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial

import pytest

from ray_eraser import doctor
from ray_eraser.doctor import FilesSeen, Listener, Outcome, RayFacts
from ray_eraser.errors import StoreError
from ray_eraser.healing import named_files
from ray_eraser.store import Store, manifest_ref
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


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_read_or_change_is_warned_of_where_they_can_get_to_it(tmp_path, mode, monkeypatch):
    inner = tmp_path / "kept" / "shards"
    inner.mkdir(parents=True)
    files = [inner / "one", inner / "two"]
    for file in files:
        file.write_text("who did what")
        file.chmod(0o600)
    assert doctor.check_private("access", files).outcome is Outcome.OK
    files[1].chmod(mode)
    for folder in (inner, inner.parent):
        folder.chmod(0o755)
    enterable = inner.stat()
    real = type(inner).stat
    above = {tmp_path, *tmp_path.parents}  # where tests run is another machine's matter
    monkeypatch.setattr(type(inner), "stat", lambda self, **how: enterable if self in above else real(self, **how))
    advice = doctor.check_private("access", files)
    assert advice.outcome is Outcome.WARN
    assert advice.detail == f"others can read or change 1 of 2 files, such as {files[1]}"
    assert advice.way_out == f"chmod go-rwx {inner}/*"
    assert doctor.check_private("access", [inner / "gone"]).outcome is Outcome.OK
    inner.parent.chmod(0o700)
    assert doctor.check_private("access", files).outcome is Outcome.OK


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


@pytest.mark.parametrize(
    ("ages", "outcome", "seen"),
    [
        ([], Outcome.OK, "the data of no accepted erasure"),
        ([59.0, 1.0, -5.0], Outcome.OK, "the data of no accepted erasure"),
        ([61.0, 3600.0, 1.0], Outcome.WARN, "the data of 2 accepted erasures is still served, the oldest for 3600 s"),
    ],
)
def test_an_accepted_erasure_that_is_still_served_after_a_minute_is_warned_of(ages, outcome, seen):
    advice = doctor.check_excisions([1e9 - age for age in ages], 1e9)
    assert advice.outcome is outcome
    assert seen in advice.detail


def test_every_warning_says_the_way_out(tmp_path):
    found = [
        doctor.check_excisions([0.0], 100.0),
        doctor.check_ports([Listener("GCS", "0.0.0.0", 6379)]),
        doctor.check_generation(FilesSeen(3, 0, missing=("the aggregate",))),
        *doctor.check_ray(RayFacts("0.0.0.0:8265", asks_for_token=False, sends_token=False)),
        doctor.check_lasting("it", type(tmp_path)("/run/x"), MOUNTS, database=True),
        doctor.check_space(tmp_path, 0, 0),
        doctor.check_clock(0.0, 1e9),
        *doctor.check_requests(1, ["a"], 30),
    ]
    assert outcomes(found) == [Outcome.WARN] * 10
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


# ---- files of the generation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "outcome", "detail"),
    [
        (None, Outcome.UNCHECKED, "nothing is published yet"),
        (StoreError("generations/x", "x"), Outcome.WARN, "the manifest is damaged, so no other file was checked"),
        (FilesSeen(9, 0), Outcome.OK, "all 9 exist; --verify SECONDS also reads them"),
        (FilesSeen(9, 9), Outcome.OK, "all 9 exist; all were read and are undamaged"),
        (FilesSeen(9, 4), Outcome.OK, "all 9 exist; 4 of them were read in the time given and are undamaged"),
        (FilesSeen(9, 0, ("the aggregate",)), Outcome.WARN, "of 9 files 1 is missing (the aggregate)"),
        (FilesSeen(9, 9, ("a",), ("b", "c")), Outcome.WARN, "of 9 files 1 is missing (a) and 2 are damaged (b, c)"),
        (FilesSeen(9, 9, tuple("abcde")), Outcome.WARN, "of 9 files 5 are missing (a, b, c and 2 more)"),
    ],
)
def test_missing_and_damaged_files_are_warned_of_by_name(seen, outcome, detail):
    advice = doctor.check_generation(seen)
    assert (advice.outcome, advice.detail) == (outcome, detail)


@pytest.fixture
def kept(trained, tmp_path):
    """A store, its manifest and the manifest's digest."""
    import shutil

    shutil.copytree(trained, tmp_path / "kept")
    store = Store(str(tmp_path / "kept"))
    (file,) = (store.local_folder / "generations").iterdir()
    return store, store.read_manifest(file.stem), file.stem


def test_missing_files_are_seen_without_reading_any(kept):
    store, manifest, digest = kept
    names = named_files(manifest, digest)
    assert doctor.look_at_files(*kept) == FilesSeen(len(names), 0)
    (store.local_folder / manifest.aggregate.path).write_bytes(b"damaged")
    (store.local_folder / manifest.shards[1].submodel.path).unlink()
    assert doctor.look_at_files(*kept) == FilesSeen(len(names), 0, missing=("the submodel of shard 1",))


def test_with_time_every_file_is_read(kept):
    store, manifest, digest = kept
    names = named_files(manifest, digest)
    assert doctor.look_at_files(*kept, seconds=600) == FilesSeen(len(names), len(names))
    for ref in (manifest.aggregate, manifest_ref(digest)):
        (store.local_folder / ref.path).write_bytes(b"damaged")
    expected = FilesSeen(len(names), len(names), damaged=("the aggregate", "the manifest"))
    assert doctor.look_at_files(*kept, seconds=600) == expected


def test_reading_ends_when_its_time_is_over_and_every_file_has_its_turn(kept, monkeypatch):
    read = []
    monkeypatch.setattr(Store, "verify", lambda _, ref: read.append(ref))
    half = len(named_files(*kept[1:])) // 2
    for _ in range(60):
        seen = doctor.look_at_files(*kept, seconds=half + 1, clock=partial(next, itertools.count()))
        assert seen.n_read == half
    assert set(read) == set(named_files(*kept[1:]))


# ---- ports -------------------------------------------------------------------------------------------------------------------

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2049 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 101 1 0 100 0 0 10 0
   1: 00000000:ACC3 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 102 1 0 100 0 0 10 0
   2: 0A00000A:CC8D 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 103 1 0 100 0 0 10 0
   3: 0100007F:AAAA 0100007F:2049 01 00000000:00000000 00:00000000 00000000  1000        0 104 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr uid timeout inode
   0: 00000000000000000000000000000000:18EB 00000000000000000000000000000000:0000 0A 0:0 00:0 0 1000 0 201 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:9B69 00000000000000000000000000000000:0000 0A 0:0 00:0 0 1000 0 202 1 0 100 0 0 10 0
   2: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 0:0 00:0 0 1000 0 203 1 0 100 0 0 10 0
"""


@pytest.fixture
def proc(tmp_path):
    """What /proc would have: some processes of Ray, each with its sockets, and one of somebody else."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    (tmp_path / "net" / "tcp6").write_text(TCP6)
    for number, (command, sockets) in enumerate(
        (
            (("/env/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"), (201,)),
            (("/env/ray/core/src/ray/raylet/raylet", "--x"), (202,)),
            (("python", "/env/ray/dashboard/dashboard.py", "--host=127.0.0.1"), (101, 102, 104)),
            (("ray::DashboardAgent",), (103,)),
            (("nginx",), (203,)),
            ((), ()),
        ),
        10,
    ):
        folder = tmp_path / str(number)
        (folder / "fd").mkdir(parents=True)
        (folder / "cmdline").write_bytes(b"".join(part.encode() + b"\0" for part in command))
        for place, socket_number in enumerate(sockets):
            (folder / "fd" / str(place)).symlink_to(f"socket:[{socket_number}]")
        (folder / "fd" / "9").symlink_to("/dev/null")
    (tmp_path / "16").mkdir()  # of a process that has just ended
    return tmp_path


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is one of a little-endian machine")
def test_what_processes_of_ray_listen_at_is_read_from_the_kernel(proc):
    assert doctor.listeners(proc) == [
        Listener("GCS", "::", 6379),
        Listener("dashboard", "0.0.0.0", 44227),
        Listener("dashboard", "127.0.0.1", 8265),
        Listener("dashboard agent", "10.0.0.10", 52365),
        Listener("raylet", "127.0.0.1", 39785),
    ]


def test_where_nothing_can_be_looked_at_nothing_is_claimed(tmp_path):
    assert doctor.listeners(tmp_path) == []
    assert doctor.check_ports([]).outcome is Outcome.UNCHECKED


@pytest.mark.parametrize(
    ("host", "is_open"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.0.2.7", True),
    ],
)
def test_a_port_is_open_unless_only_this_machine_reaches_it(host, is_open):
    listener = Listener("raylet", host, 1)
    assert listener.is_open is is_open
    assert doctor.check_ports([listener]).outcome is (Outcome.WARN if is_open else Outcome.OK)


def test_a_warning_of_ports_names_different_processes_and_the_way_out():
    gcs, raylet, worker = Listener("GCS", "::", 6379), Listener("raylet", "0.0.0.0", 7), Listener("workers", "0.0.0.0", 9)
    found = [worker, replace(worker, port=8), replace(raylet, port=5), raylet, gcs, Listener("dashboard", "127.0.0.1", 8265)]
    advice = doctor.check_ports(found)
    assert advice.detail == "other machines can connect: GCS at [::]:6379, raylet at 0.0.0.0:5, workers at 0.0.0.0:8 and 2 more"
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0" in advice.way_out
    assert "firewall" in advice.way_out
    closed = doctor.check_ports(found, behind_firewall=True)
    assert (closed.outcome, closed.way_out) == (Outcome.OK, "")
    assert closed.detail.startswith(advice.detail)


@pytest.mark.skipif(not doctor.PROC.joinpath("net/tcp").exists(), reason="needs Linux's /proc")
def test_a_socket_of_a_process_that_runs_is_found():
    program = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    command = [sys.executable, "-c", program, "ray.util.client.server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline())
            assert Listener("Ray Client server", "127.0.0.1", port) in doctor.listeners()
        finally:
            process.communicate("\n")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))
