"""Look at a deployment as its operator should now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import cli
import sqlalchemy as sa
import typer
from rich.table import Table
from rich.text import Text

from ray_eraser import doctor as look
from ray_eraser.config import DAY, UnlearningConfig
from ray_eraser.doctor import Advice, Outcome, RayFacts
from ray_eraser.errors import StoreError
from ray_eraser.store import Store
from ray_eraser.unlearning.idempotency import secret_file
from ray_eraser.unlearning.ledger import GenerationRow, Ledger
from ray_eraser.unlearning.plan import overdue
from ray_eraser.unlearning.request import RequestState, UnlearningRequest

_SQLITE_ENDS = ("", "-wal", "-shm", "-journal")
"""Of the files that SQLite has beside a database, and of the database itself."""
_LEDGER_FILES = frozenset(f"ledger.db{end}" for end in _SQLITE_ENDS)
_STYLES = {Outcome.OK: "green", Outcome.WARN: "bold red", Outcome.UNCHECKED: "dim"}


def doctor(
    storage_path: cli.StorageOption = None,
    deployment: cli.DeploymentOption = "default",
    keys: Annotated[Path | None, typer.Option("--keys", metavar="FILE", help="The API keys of serve.py.")] = None,
    config: cli.ConfigOption = None,
    changes: cli.SetOption = None,
    ray_address: cli.RayOption = None,
    verify: Annotated[
        float,
        typer.Option(
            "--verify",
            metavar="SECONDS",
            min=0,
            help="Also read files of the current generation and compare their digests, for about so long; others each time.",
        ),
    ] = 0.0,
    behind_firewall: Annotated[
        bool, typer.Option("--behind-firewall", help="Only nodes of the cluster can reach Ray's ports: do not warn of them.")
    ] = False,
    as_json: cli.JsonOption = False,
    debug: cli.DebugOption = False,
) -> None:
    """Warn of what endangers a deployment, and say the way out.

    Looked at are Ray's dashboard, token and ports on this machine; who can read stored files, the ledger, key files and the
    configuration; whether files and ledger are where they last; whether files of the current generation are missing or damaged;
    disk space; the clock; whether Ray has the GPUs that the deployment was trained on; requests that are overdue, were set
    aside, or have not left what is served. Changes nothing, starts no Ray. Exit code 1 where there is a warning.

    [bold]Example[/bold]: python jobs/doctor.py --storage-path deployments/ml-1m --keys api.keys
    """
    with cli.exit_codes(debug):
        settings = cli.settings(config, changes)
        place = cli.place(storage_path, deployment)
        with cli.opened_ledger(place, deployment, settings.unlearning.ledger) as (store, ledger):
            noted = ledger.noted("unlearning", settings.unlearning.model_copy(update={"ledger": ""}).model_dump_json())
            unlearning = UnlearningConfig.model_validate_json(noted)
            url = settings.unlearning.ledger
            facts = _ray(ray_address)
            found = [
                *(() if ray_address == "local" else _of_ray(facts, behind_firewall=behind_firewall)),
                *look.check_files(_secrets(keys, unlearning, ledger.name, config, url)),
                *_storage(store, url),
                look.check_clock(time.time(), ledger.newest_time()),
                *_generation(store, ledger, verify, None if facts is None else facts.gpus),
                *_requests(ledger, unlearning.deadline_days),
            ]
        warned = any(advice.outcome is Outcome.WARN for advice in found)
        if as_json:
            cli.print_json({"ok": not warned, "checks": [advice.to_dict() for advice in found]})
        else:
            _print(found)
        if warned:
            raise typer.Exit(cli.FAILED)


def _ray(address: str | None) -> RayFacts | None:
    if address == "local":
        return None  # there is no other Ray then
    from ray_eraser.runtime.exposure import look_at_ray

    return look_at_ray(address)


def _of_ray(facts: RayFacts | None, *, behind_firewall: bool) -> Iterator[Advice]:
    yield from look.check_ray(facts)
    yield look.check_ports(look.listeners(), behind_firewall=behind_firewall)


def _generation(store: Store, ledger: Ledger, seconds: float, gpus: float | None) -> Iterator[Advice]:
    """What there is to say of the published generation, looked at again if another one was published meanwhile."""
    published = ledger.current()
    while True:
        found = [*_of_generation(store, published, seconds, gpus)]
        looked_at, published = published, ledger.current()
        if looked_at == published:
            break
    yield from found


def _of_generation(store: Store, published: GenerationRow | None, seconds: float, gpus: float | None) -> Iterator[Advice]:
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
    folder = store.local_folder
    mounts = look.MOUNTS.read_text("utf-8") if look.MOUNTS.exists() else ""
    ledger = folder / "ledger.db" if folder is not None and not ledger_url else _sqlite_file(ledger_url)
    if folder is None:
        yield Advice("storage path", Outcome.UNCHECKED, f"{store.uri} is no local folder: its owner says who reads it")
    else:
        yield look.check_storage_private(folder)
        paths = [folder / path for path in store.everything()]
        yield look.check_private("access to stored files", [path for path in paths if path.name not in _LEDGER_FILES])
        yield look.check_lasting("stored files", folder, mounts, database=False)
        yield look.check_space(folder, sum(path.stat().st_size for path in paths if path.exists()))
    if ledger is None:
        yield Advice("ledger", Outcome.UNCHECKED, "is on a database server, which has its own operator")
    else:
        yield look.check_lasting("ledger", ledger, mounts, database=True)
        beside = [ledger.with_name(f"{ledger.name}{end}") for end in _SQLITE_ENDS]
        yield look.check_private("access to the ledger", [file for file in beside if file.exists()])


def _sqlite_file(url: str) -> Path | None:
    parsed = sa.make_url(url) if url else None
    if parsed is None or parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def _requests(ledger: Ledger, deadline_days: float) -> Iterator[Advice]:
    now = time.time()
    received = [row.received_at for row in ledger.unfinished(RequestState.RECEIVED) if isinstance(row.work, UnlearningRequest)]
    yield look.check_excisions(received, now)
    late = overdue(ledger.waiting(), deadline_days * DAY, now)
    set_aside = [row.request_id for row in ledger.unfinished(RequestState.SET_ASIDE)]
    yield from look.check_requests(late, set_aside, deadline_days)


def _print(found: list[Advice]) -> None:
    table = Table(title="deployment", title_justify="left")
    table.add_column("")
    for name in ("check", "what was seen, and the way out"):
        table.add_column(name, overflow="fold")
    for advice in found:
        seen = Text(advice.detail)
        if advice.way_out:
            seen.append(f"\n{advice.way_out}", "bold")
        table.add_row(Text(advice.outcome.value, _STYLES[advice.outcome]), Text(advice.check), seen)
    cli.results().print(table)


if __name__ == "__main__":
    cli.run(doctor)
