"""The actors and reservations on the tests' Ray, to check that a test leaves nothing behind."""

from __future__ import annotations

import time


def living() -> set[str]:
    """Actors and placement groups that are there, and the CPUs that are reserved."""
    import ray
    from ray._private import state  # the public listing needs the dashboard

    actors = {f"actor {name}" for name, actor in state.actors().items() if actor["State"] != "DEAD"}
    groups = {f"group {name}" for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}
    reserved = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
    return actors | groups | ({f"{reserved} CPU"} if reserved else set())


def left_since(before: set[str]) -> set[str]:
    """What is still there after a while that was not there before."""
    deadline = time.monotonic() + 60
    while living() - before and time.monotonic() < deadline:
        time.sleep(0.2)
    return living() - before
