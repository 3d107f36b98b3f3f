"""Warn of dangers to a deployment, and say the way out.

It looks at Ray's dashboard, token and ports on this machine; who can read stored files, the ledger, key files and the
configuration; whether files and ledger are on lasting storage; whether files of the current generation are missing or damaged;
disk space; the clock; whether Ray has the GPUs that the deployment was trained on; and requests that are overdue, set aside,
or not yet out of service. Changes nothing, starts no Ray. Exits with 1 if there is a warning.

Examples:
    ray-eraser doctor --storage-path deployments/ml-1m --keys api.keys
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ray_eraser.cli import inputs
from ray_eraser.cli.options import ConfigOption, DeploymentOption, JsonOption, RayOption, SetOption, StorageOption
from ray_eraser.cli.output import print_json, results
from ray_eraser.cli.program import FAILED
from ray_eraser.cli.reaching import opened_ledger, place
from ray_eraser.errors import StoreError

if TYPE_CHECKING:
    from ray_eraser.config import UnlearningConfig
    from ray_eraser.doctor import Advice, RayFacts
    from ray_eraser.store import Store
    from ray_eraser.unlearning.ledger import GenerationRow, Ledger

_SQLITE_ENDS = ("", "-wal", "-shm", "-journal")
"""The ends of the file names of a SQLite database and the files beside it."""
_LEDGER_FILES = frozenset(f"ledger.db{end}" for end in _SQLITE_ENDS)

_Keys = Annotated[Path | None, typer.Option("--keys", metavar="FILE", help="The API keys of ray-eraser serve.")]
_Verify = Annotated[
    float,
    typer.Option(
        "--verify",
        metavar="SECONDS",
        min=0,
        help="Also read files of the current generation and compare their digests, for about so long; others each time.",
    ),
]
_Firewall = Annotated[
    bool, typer.Option("--behind-firewall", help="Only nodes of the cluster can reach Ray's ports: do not warn of them.")
]


def doctor(
    *,
    storage_path: StorageOption = None,
    deployment: DeploymentOption = "default",
    keys: _Keys = None,
    config: ConfigOption = None,
    changes: SetOption = None,
    ray_address: RayOption = None,
    verify: _Verify = 0.0,
    behind_firewall: _Firewall = False,
    as_json: JsonOption = False,
) -> None:
    from ray_eraser import doctor as look
    from ray_eraser.config import UnlearningConfig

    settings = inputs.settings(config, changes)
    url = settings.unlearning.ledger
    with opened_ledger(place(storage_path, deployment), deployment, url) as (store, ledger):
        noted = ledger.noted("unlearning", settings.unlearning.model_copy(update={"ledger": ""}).model_dump_json())
        unlearning = UnlearningConfig.model_validate_json(noted)
        facts = _ray(ray_address)
        found = [
            *(() if ray_address == "local" else _of_ray(facts, behind_firewall=behind_firewall)),
            *look.check_files(_secrets(keys, unlearning, ledger.name, config, url)),
            *_storage(store, url),
            look.check_clock(time.time(), ledger.newest_time()),
            *_generation(store, ledger, verify, None if facts is None else facts.gpus),
            *_requests(ledger, unlearning.deadline_days),
        ]
    warned = any(advice.outcome is look.Outcome.WARN for advice in found)
    if as_json:
        print_json({"ok": not warned, "checks": [advice.to_dict() for advice in found]})
    else:
        _print(found)
    if warned:
        raise typer.Exit(FAILED)


def _ray(address: str | None) -> RayFacts | None:
    if address == "local":
        return None  # there is no other Ray then
    from ray_eraser.runtime.exposure import look_at_ray

    return look_at_ray(address)


def _of_ray(facts: RayFacts | None, *, behind_firewall: bool) -> Iterator[Advice]:
    from ray_eraser import doctor as look

    yield from look.check_ray(facts)
    yield look.check_ports(look.listeners(), behind_firewall=behind_firewall)


def _generation(store: Store, ledger: Ledger, seconds: float, gpus: float | None) -> Iterator[Advice]:
    """Advice about the published generation; looks again if another one was published meanwhile."""
    published = ledger.current()
    while True:
        found = [*_of_generation(store, published, seconds, gpus)]
        looked_at, published = published, ledger.current()
        if looked_at == published:
            break
    yield from found


def _of_generation(store: Store, published: GenerationRow | None, seconds: float, gpus: float | None) -> Iterator[Advice]:
    from ray_eraser import doctor as look

    if published is None:
        yield look.check_generation(None)
        yield look.check_device(None, gpus)
        return
    try:
        manifest = store.read_manifest(published.digest)
    except StoreError as error:
        yield look.check_generation(error)
        return
    yield look.check_generation(look.look_at_files(store, manifest, published.digest, seconds))
    yield look.check_device(manifest.environment, gpus)


def _secrets(
    keys: Path | None, unlearning: UnlearningConfig, ledger_name: str, config: Path | None, ledger_url: str
) -> dict[str, Path]:
    """The files that must be private, by what they are."""
    import sqlalchemy as sa

    from ray_eraser.unlearning.idempotency import secret_file

    files = {} if keys is None else {"API keys": keys}
    if unlearning.signing_key:
        files["signing key"] = Path(unlearning.signing_key)
    with suppress(RuntimeError):  # the user has no folder of their own
        if (secret := secret_file(unlearning.key_folder, ledger_name)).exists():  # made when the first key comes
            files["secret of idempotency keys"] = secret
    if config is not None and ledger_url and sa.make_url(ledger_url).password:
        files["configuration with a password"] = config
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    return files | ({"Ray's auth token file": token} if token.exists() else {})


def _storage(store: Store, ledger_url: str) -> Iterator[Advice]:
    from ray_eraser import doctor as look

    folder = store.local_folder
    mounts = look.MOUNTS.read_text("utf-8") if look.MOUNTS.exists() else ""
    ledger = folder / "ledger.db" if folder is not None and not ledger_url else _sqlite_file(ledger_url)
    if folder is None:
        detail = f"{store.uri} is no local folder: its owner says who reads it"
        yield look.Advice("storage path", look.Outcome.UNCHECKED, detail)
    else:
        yield look.check_storage_private(folder)
        paths = [folder / path for path in store.everything()]
        yield look.check_private("access to stored files", [path for path in paths if path.name not in _LEDGER_FILES])
        yield look.check_lasting("stored files", folder, mounts, database=False)
        yield look.check_space(folder, sum(path.stat().st_size for path in paths if path.exists()))
    if ledger is None:
        yield look.Advice("ledger", look.Outcome.UNCHECKED, "is on a database server, which has its own operator")
    else:
        yield look.check_lasting("ledger", ledger, mounts, database=True)
        beside = [ledger.with_name(f"{ledger.name}{end}") for end in _SQLITE_ENDS]
        yield look.check_private("access to the ledger", [file for file in beside if file.exists()])


def _sqlite_file(url: str) -> Path | None:
    import sqlalchemy as sa

    parsed = sa.make_url(url) if url else None
    if parsed is None or parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def _requests(ledger: Ledger, deadline_days: float) -> Iterator[Advice]:
    from ray_eraser import doctor as look
    from ray_eraser.config import DAY
    from ray_eraser.unlearning.plan import overdue
    from ray_eraser.unlearning.request import RequestState, UnlearningRequest

    now = time.time()
    received = [row.received_at for row in ledger.unfinished(RequestState.RECEIVED) if isinstance(row.work, UnlearningRequest)]
    yield look.check_excisions(received, now)
    late = overdue(ledger.waiting(), deadline_days * DAY, now)
    set_aside = [row.request_id for row in ledger.unfinished(RequestState.SET_ASIDE)]
    yield from look.check_requests(late, set_aside, deadline_days)


def _print(found: list[Advice]) -> None:
    from ray_eraser.doctor import Outcome

    styles = {Outcome.OK: "green", Outcome.WARN: "bold red", Outcome.UNCHECKED: "dim"}
    table = Table(title="deployment", title_justify="left")
    table.add_column("")
    for name in ("check", "what was seen, and the way out"):
        table.add_column(name, overflow="fold")
    for advice in found:
        seen = Text(advice.detail)
        if advice.way_out:
            seen.append(f"\n{advice.way_out}", "bold")
        table.add_row(Text(advice.outcome.value, styles[advice.outcome]), Text(advice.check), seen)
    results().print(table)
