"""The settings of a deployment: those recorded in its store and ledger, and those that apply on this machine only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray_eraser.config import RUN_HERE, EraserConfig, RuntimeConfig, UnlearningConfig, changed, config_from
from ray_eraser.errors import ConfigError, DeploymentError
from ray_eraser.store import Store
from ray_eraser.unlearning.ledger import GenerationRow, Ledger


def agreed(
    deployment: str, store: Store, ledger: Ledger, config: EraserConfig | None
) -> tuple[GenerationRow | None, EraserConfig]:
    """The published generation, or None, and the settings: its own, or the given ones.

    Raises:
        DeploymentError: nothing is deployed there and no config is given, or what is there is another ledger's, or was made
            with other settings.
    """
    refuse_foreign(deployment, store, ledger)
    published = ledger.current()
    if published is None:
        if config is None:
            raise DeploymentError(deployment, f"nothing is deployed at {store.uri}: train first")
        return None, config
    trained = store.read_manifest(published.digest).config
    if config is not None and not config.agrees_with(trained):
        raise DeploymentError(deployment, f"{store.uri} was trained with other settings: use them, or another path")
    return published, trained if config is None else as_run_here(trained, config.runtime)


def refuse_foreign(deployment: str, store: Store, ledger: Ledger) -> None:
    """Refuse a storage path of another ledger, whose files would be deleted as leftovers."""
    if store.owner() not in (None, ledger.name):
        raise DeploymentError(deployment, f"{store.uri} belongs to another ledger: give that one, or choose another path")


def unlearning_settings(ledger: Ledger, config: EraserConfig | None) -> UnlearningConfig:
    """The `unlearning` settings: the given ones, or else the last ones. They change no bit."""
    if config is not None:
        # The URL may hold a password, and is needed to read this note anyway.
        ledger.note("unlearning", config.unlearning.model_copy(update={"ledger": ""}).model_dump_json())
        return config.unlearning
    return UnlearningConfig.model_validate_json(ledger.noted("unlearning", UnlearningConfig().model_dump_json()))


def noted_here(ledger: Ledger, config: EraserConfig, *, given: bool) -> EraserConfig:
    """Settings with the local runtime settings (`RUN_HERE`): record the given ones, or else restore the last ones."""
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
    """The settings that a generation records. Local ones change no bit, and a URL may hold a password."""
    usual = {name: getattr(EraserConfig().runtime, name) for name in RUN_HERE}
    runtime = config.runtime.model_copy(update=usual)
    return config.model_copy(update={"runtime": runtime, "unlearning": EraserConfig().unlearning})


def asked_settings(ledger: Ledger, config: EraserConfig, notes: Mapping[str, str] | None = None) -> EraserConfig:
    """The settings that the deployment was given. Settings left to `auto` are open in them.

    Args:
        ledger: where they are noted.
        config: the present settings, for a deployment that noted none.
        notes: entries that the ledger is about to get.
    """
    given = (notes or {}).get("settings") or ledger.noted("settings", recorded(config).model_dump_json())
    return config_from(json.loads(given))


def settings_with(ledger: Ledger, config: EraserConfig, changes: Sequence[str]) -> EraserConfig:
    """The settings that the deployment was given, with changes. Settings left to `auto` are open again.

    Args:
        ledger: where they are noted.
        config: the present settings.
        changes: `section.key=value` each.

    Raises:
        ConfigError: a setting is unknown, out of range, or changes no stored file.
    """
    for change in changes:
        name = change.partition("=")[0].strip()
        if name.startswith("unlearning.") or name.removeprefix("runtime.") in RUN_HERE:
            raise ConfigError(name, "changes nothing of what is made: give it when the deployment is opened")
    return as_run_here(changed(asked_settings(ledger, config), changes), config.runtime)
