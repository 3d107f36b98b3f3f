"""What a deployment was made with and how it runs here: read from its store and ledger when it is opened."""

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
    """The published generation, if there is one, and the settings: those it was trained with, or those given.

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
    return published, trained.model_copy(update={} if config is None else {"runtime": config.runtime})


def refuse_foreign(deployment: str, store: Store, ledger: Ledger) -> None:
    """What another ledger knows of is none of this one's to sweep."""
    if store.owner() not in (None, ledger.name):
        raise DeploymentError(deployment, f"{store.uri} belongs to another ledger: give that one, or choose another path")


def unlearning_settings(ledger: Ledger, config: EraserConfig | None) -> UnlearningConfig:
    """When requests are carried out and the like: as given now, or else as given the last time. They change no bit."""
    if config is not None:
        # The URL may hold a password, and whoever reads this has it already.
        ledger.note("unlearning", config.unlearning.model_copy(update={"ledger": ""}).model_dump_json())
        return config.unlearning
    return UnlearningConfig.model_validate_json(ledger.noted("unlearning", UnlearningConfig().model_dump_json()))


def noted_here(ledger: Ledger, config: EraserConfig, *, given: bool) -> EraserConfig:
    """Settings with how wide and how long things run here: as given now, which is noted, or else as noted the last time."""
    if given:
        ledger.note("run here", config.runtime.model_dump_json(include=set(RUN_HERE)))
        return config
    return as_run_here(config, json.loads(ledger.noted("run here", "{}")))


def as_run_here(config: EraserConfig, here: Mapping[str, Any] | RuntimeConfig) -> EraserConfig:
    """Settings with what says how wide and how long things run here, which no generation records."""
    given = here.model_dump(include=set(RUN_HERE)) if isinstance(here, RuntimeConfig) else dict(here)
    runtime = RuntimeConfig.model_validate(config.runtime.model_dump() | given)
    return config.model_copy(update={"runtime": runtime})


def recorded(config: EraserConfig) -> EraserConfig:
    """The settings without those that say where and when things run: they change no bit, and a URL may hold a password."""
    usual = {name: getattr(EraserConfig().runtime, name) for name in RUN_HERE}
    runtime = config.runtime.model_copy(update=usual)
    return config.model_copy(update={"runtime": runtime, "unlearning": EraserConfig().unlearning})


def settings_with(ledger: Ledger, config: EraserConfig, changes: Sequence[str]) -> EraserConfig:
    """The settings that the deployment was asked to have, with changes; what was left to be chosen is still open.

    Args:
        ledger: where they are noted.
        config: the present settings.
        changes: `section.key=value` each.

    Raises:
        ConfigError: a setting is unknown, out of range, or none of those that something is made with.
    """
    for change in changes:
        name = change.partition("=")[0].strip()
        if name.startswith("unlearning.") or name.removeprefix("runtime.") in RUN_HERE:
            raise ConfigError(name, "changes nothing of what is made: give it when the deployment is opened")
    asked = config_from(json.loads(ledger.noted("settings", recorded(config).model_dump_json())))
    return as_run_here(changed(asked, changes), config.runtime)
