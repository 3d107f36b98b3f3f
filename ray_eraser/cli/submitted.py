"""What holds in a job that `ray job submit` started: Ray keeps its command and its output, and deletes its folder."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from ray_eraser.cli.output import say


def submission_id() -> str | None:
    """The id that `ray job submit` gave this job; None for a command that was started by hand."""
    # Ray tells a job its metadata in this variable alone; the runtime context does not have them.
    metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("metadata") or {}
    submission: str | None = metadata.get("job_submission_id")
    return submission


def keep(command: str, storage_path: str, result: Mapping[str, Any]) -> None:
    """In a submitted job, store its result as `results/SUBMISSION.json` under the storage path.

    The file outlives Ray and its logs. So the result must name no user and no item, and hold no salt: a later erasure would
    not reach it. For digests of the current generation see `lasting`.
    """
    submission = submission_id()
    if submission is None:
        return
    from ray_eraser.store import Store

    name = re.sub(r"[^A-Za-z0-9._-]", "_", submission)
    fields = {"submission_id": submission, "job": command, "finished_at": round(time.time(), 3), "result": result}
    say(f"result: {Store(storage_path).write_result(name, fields)} under {storage_path}")


def for_logs(reason: str) -> str:
    """The reason of a refusal; in a submitted job, whose output Ray keeps, without words that may name somebody."""
    return reason if submission_id() is None else "refused: run this where its output is not kept, to see why"


def lasting(result: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that may be kept: without digests of the current generation and of its files.

    Together with the remaining data, such a digest would give away what was erased since.
    """
    kept = {name: value for name, value in result.items() if name != "digest"}
    if "mismatches" in kept:
        kept["mismatches"] = [re.sub(r"[0-9a-f]{64}", "...", line) for line in kept["mismatches"]]
    return kept
