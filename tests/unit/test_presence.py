from __future__ import annotations

import sys

import pytest

from ray_eraser.runtime.presence import may_run_here

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere Ray is asked")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with a process that is no Ray's, and no Ray that was started before."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "proc" / "1").mkdir(parents=True)
    (tmp_path / "proc" / "1" / "cmdline").write_bytes(b"/bin/less\0raylet.log\0")
    return tmp_path


def test_where_no_raylet_runs_and_none_was_noted_there_is_no_ray(machine):
    assert not may_run_here(machine / "proc")


def test_a_raylet_is_a_ray(machine):
    (machine / "proc" / "2").mkdir()
    (machine / "proc" / "2" / "cmdline").write_bytes(b"/lib/ray/core/src/ray/raylet/raylet\0--gcs-address=10.0.0.1:6379\0")
    assert may_run_here(machine / "proc")


def test_a_ray_that_was_noted_may_run(machine):
    (machine / "tmp" / "ray").mkdir(parents=True)
    (machine / "tmp" / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert may_run_here(machine / "proc")
