"""Kinds of models, partitions and aggregators that come from other packages.

A kind is a class that is made from its settings, and names the class of these as `Settings`; the settings' `kind` is its name.
An installed package declares it under one of the entry point groups `ray_eraser.models`, `ray_eraser.partitions` and
`ray_eraser.aggregators`: then it is known in every process. `config.register` makes it known in this process alone, for tests
and notebooks. See docs/extend.md.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from ray_eraser.errors import ExtensionError

Group = Literal["models", "partitions", "aggregators"]

_here: dict[tuple[Group, str], type[Any]] = {}
_loaded: dict[tuple[Group, str], type[Any]] = {}


def add(group: Group, implementation: type[Any]) -> None:
    """Make a kind known in this process, in the place of one of the same name: see `config.register`, which checks it."""
    _here[group, name_of(group, implementation)] = implementation


def find(group: Group, kind: str) -> type[Any] | None:
    """The class of a kind; None where neither this process nor an installed package has one of this name.

    Raises:
        ExtensionError: the package that declares it cannot be loaded, or declares it under another name than its settings.
    """
    known = _here.get((group, kind)) or _loaded.get((group, kind))
    if known is not None:
        return known
    declared = [point for point in _declared(group) if point.name == kind]
    if not declared:
        return None
    if len({point.value for point in declared}) > 1:
        raise ExtensionError(group, kind, f"is declared by several packages ({_values(declared)}): uninstall all but one")
    try:
        implementation = declared[0].load()
    except Exception as error:
        raise ExtensionError(group, kind, f"cannot be loaded from {declared[0].value} ({error!r})") from error
    if (name := name_of(group, implementation)) != kind:
        raise ExtensionError(group, kind, f"is declared for settings whose kind is {name!r}: give both the same name")
    _loaded[group, kind] = implementation
    return _loaded[group, kind]


def names(group: Group) -> list[str]:
    """The kinds of other packages and of this process, sorted. Loads none of them."""
    return sorted({point.name for point in _declared(group)} | {kind for where, kind in _here if where == group})


def is_of_this_process(group: Group, kind: str) -> bool:
    """Whether a kind is known by `add` alone, so that no other process can make it."""
    return (group, kind) in _here and kind not in {point.name for point in _declared(group)}


def _declared(group: Group) -> list[EntryPoint]:
    return list(entry_points(group=f"ray_eraser.{group}"))


def _values(points: list[EntryPoint]) -> str:
    return ", ".join(sorted(point.value for point in points))


def name_of(group: Group, implementation: Any) -> str:
    """What the settings of a kind are called by default.

    Raises:
        ExtensionError: it has no settings with a name.
    """
    fields = getattr(getattr(implementation, "Settings", None), "model_fields", {})
    name = fields["kind"].default if "kind" in fields else None
    if not isinstance(name, str):
        what = getattr(implementation, "__name__", repr(implementation))
        raise ExtensionError(group, what, "names no class of settings: give it a `Settings` whose `kind` has a default")
    return name
