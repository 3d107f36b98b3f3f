"""The settings of a deployment: some are recorded in its store and ledger, others apply on this machine only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray_eraser.config import RUN_HERE, EraserConfig, RuntimeConfig, UnlearningConfig, changed, config_from
from ray_eraser.errors import ConfigError, DeploymentError, StoreError
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import GenerationRow, Ledger


def agreed(
    deployment: str, store: Store, ledger: Ledger, config: EraserConfig | None
) -> tuple[GenerationRow | None, EraserConfig]:
    """The published generation, or None, and the settings: the generation's own, or the given ones.

    Raises:
        DeploymentError: nothing is deployed there and no config is given, or the files belong to another ledger, or were made
            with other settings.
    """
    refuse_foreign(deployment, store, ledger)
    published = ledger.current()
    if published is None:
        if config is None:
            raise DeploymentError(deployment, f"nothing is deployed at {store.uri}: train first")
        return None, config
    try:
        trained = store.read_manifest(published.digest).config
    except StoreError:
        if ledger.current() == published:
            raise
        # A coordinator that is still in force published another generation, and deleted this one.
        return agreed(deployment, store, ledger, config)
    if config is not None and not config.agrees_with(trained):
        raise DeploymentError(deployment, f"{store.uri} was trained with other settings: use those, or choose another path")
    return published, trained if config is None else as_run_here(trained, config.runtime)


def refuse_foreign(deployment: str, store: Store, ledger: Ledger) -> None:
    """Refuse the storage path of another ledger, whose files would be deleted as leftovers."""
    if store.owner() not in (None, ledger.name):
        raise DeploymentError(deployment, f"{store.uri} belongs to another ledger: give that ledger, or choose another path")


def unlearning_settings(ledger: Ledger, config: EraserConfig | None) -> UnlearningConfig:
    """The `unlearning` settings: the given ones, or else the last noted ones. They affect no bit of a generation."""
    if config is not None:
        # Without the URL: it may hold a password, and a reader of this note has it already.
        ledger.note("unlearning", config.unlearning.model_copy(update={"ledger": ""}).model_dump_json())
        return config.unlearning
    return UnlearningConfig.model_validate_json(ledger.noted("unlearning", UnlearningConfig().model_dump_json()))


def noted_here(ledger: Ledger, config: EraserConfig, *, given: bool) -> EraserConfig:
    """Settings with the local runtime settings (`RUN_HERE`): note the given ones, or else restore the last noted ones."""
    if given:
        ledger.note("run here", config.runtime.model_dump_json(include=set(RUN_HERE)))
        return config
    return as_run_here(config, json.loads(ledger.noted("run here", "{}")))


def as_run_here(config: EraserConfig, here: Mapping[str, Any] | RuntimeConfig) -> EraserConfig:
    """Settings with the local runtime settings (`RUN_HERE`), which no generation records."""
    given = here.model_dump(include=set(RUN_HERE)) if isinstance(here, RuntimeConfig) else dict(here)
    runtime = RuntimeConfig.model_validate(config.runtime.model_dump() | given)
    return config.model_copy(update={"runtime": runtime})


def recorded(config: EraserConfig) -> EraserConfig:
    """The settings that a generation records. Local settings affect no bit, and a URL may hold a password."""
    usual = {name: getattr(EraserConfig().runtime, name) for name in RUN_HERE}
    runtime = config.runtime.model_copy(update=usual)
    return config.model_copy(update={"runtime": runtime, "unlearning": EraserConfig().unlearning})


def asked_settings(ledger: Ledger, config: EraserConfig, notes: Mapping[str, str] | None = None) -> EraserConfig:
    """The settings as the user gave them: `auto` stays `auto`.

    Args:
        ledger: has a note of them.
        config: the current settings, for a deployment without such a note.
        notes: entries that the ledger is about to get.
    """
    given = (notes or {}).get("settings") or ledger.noted("settings", recorded(config).model_dump_json())
    return config_from(json.loads(given))


def settings_with(ledger: Ledger, config: EraserConfig, changes: Sequence[str]) -> EraserConfig:
    """The settings as the user gave them, with changes. Settings left to `auto` are chosen again.

    Args:
        ledger: has a note of them.
        config: the current settings.
        changes: `section.key=value` each.

    Raises:
        ConfigError: a setting is unknown, out of range, or changes no stored file.
    """
    for change in changes:
        name = change.partition("=")[0].strip()
        if name.startswith("unlearning.") or name.removeprefix("runtime.") in RUN_HERE:
            raise ConfigError(name, "affects no stored file: give it when you open the deployment")
    return as_run_here(changed(asked_settings(ledger, config), changes), config.runtime)
