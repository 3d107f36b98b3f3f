"""The registry of models, partitions and aggregators from other packages.

A kind is a class that is made from its settings. Its attribute `Settings` is the class of the settings, whose `kind` is the
name of the kind. An installed package declares a kind in one of the entry point groups `ray_eraser.models`,
`ray_eraser.partitions` and `ray_eraser.aggregators`, which makes it known in every process. `config.register` makes a kind
known only in this process, for tests and notebooks. See docs/extend.md.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from ray_eraser.errors import ExtensionError

Group = Literal["models", "partitions", "aggregators"]

_here: dict[tuple[Group, str], type[Any]] = {}
_loaded: dict[tuple[Group, str], type[Any]] = {}


def add(group: Group, implementation: type[Any]) -> None:
    """Make a kind known in this process, without checks. It replaces a kind of the same name. Use `config.register` instead."""
    _here[group, name_of(group, implementation)] = implementation


def find(group: Group, kind: str) -> type[Any] | None:
    """The class of a kind; None if neither this process nor an installed package has a kind of this name.

    Raises:
        ExtensionError: several packages declare the kind, it cannot be loaded, or its settings have another name.
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
        raise ExtensionError(
            group, kind, f"cannot be loaded from {declared[0].value} ({error!r}): fix that package or uninstall it"
        ) from error
    if (name := name_of(group, implementation)) != kind:
        raise ExtensionError(group, kind, f"is declared for settings whose kind is {name!r}: give both the same name")
    _loaded[group, kind] = implementation
    return _loaded[group, kind]


def names(group: Group) -> list[str]:
    """The kinds of other packages and of this process, sorted, without loading them."""
    return sorted({point.name for point in _declared(group)} | {kind for where, kind in _here if where == group})


def is_of_this_process(group: Group, kind: str) -> bool:
    """Whether a kind is known only through `add`, so that no other process can make it."""
    return (group, kind) in _here and kind not in {point.name for point in _declared(group)}


def _declared(group: Group) -> list[EntryPoint]:
    return list(entry_points(group=f"ray_eraser.{group}"))


def _values(points: list[EntryPoint]) -> str:
    return ", ".join(sorted(point.value for point in points))


def name_of(group: Group, implementation: Any) -> str:
    """The name of a kind: the default of `kind` in its settings.

    Raises:
        ExtensionError: the class has no settings with a named kind.
    """
    fields = getattr(getattr(implementation, "Settings", None), "model_fields", {})
    name = fields["kind"].default if "kind" in fields else None
    if not isinstance(name, str):
        what = getattr(implementation, "__name__", repr(implementation))
        raise ExtensionError(group, what, "has no class of settings: give it a `Settings` whose `kind` has a default")
    return name
