"""A client in a network that the tests are not in: a line of JSON with a name and arguments in, a line with the answer out."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

from cluster import apart


def unlearn_user(user_id: Any) -> str:
    """Have a user forgotten; returns when shards train."""
    request = apart._client.unlearn(user_id=user_id).request_id
    deadline = time.monotonic() + 60
    while apart._client.progress().stage != "shards":
        if time.monotonic() > deadline:
            raise TimeoutError(f"no shard trains: {apart.describe()}")
        time.sleep(0.01)
    return request


def standing(request: str) -> list[str]:
    """[stage of the run, state of the request]."""
    return [apart._client.progress().stage, apart._client.status(request).value]


def alive() -> list[str]:
    """The addresses of the nodes that Ray takes for alive, sorted."""
    import ray

    return sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"])


def held() -> dict[str, list[str]]:
    """By the address of a node, the roles of the processes on it, sorted.

    Asks the processes: `describe` says where a shard was when it was last trained.
    """
    import ray

    address = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    names = [named["name"] for named in ray.util.list_named_actors(all_namespaces=True) if named["name"].count("/") == 2]
    asked = [ray.get_actor(name, namespace="ray_eraser").__ray_call__.remote(_node_here) for name in names]
    roles: dict[str, list[str]] = {}
    for name, node in sorted(zip(names, ray.get(asked, timeout=90), strict=True)):
        roles.setdefault(address[node], []).append(name.split("/")[2])
    return roles


def _node_here(_: object) -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


FUNCTIONS = {
    function.__name__: function
    for function in (apart.open_deployment, apart.describe, apart.wait_for, unlearn_user, standing, alive, held)
}


def main() -> None:
    import ray

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed is no answer
    ray.init(namespace="ray_eraser", log_to_driver=False, logging_level="ERROR")  # at RAY_ADDRESS
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"answer": FUNCTIONS[name](*arguments)}
        except Exception:  # noqa: BLE001 - the test fails of it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
