"""The settings reference, from the classes of `ray_eraser.config`."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ray_eraser import config

TITLE = """# Settings

Set a value with `--set section.key=value`, or in a TOML file that you pass with `--config FILE.toml`. In Python, pass the same texts to
[`load_config`](python.md#ray_eraser.load_config). `ray-eraser train --print-settings` prints all settings with their present values.

An unknown key is an error. A value outside of its range is an error that names the key, the value and the range.
"""

MODELS = (
    config.AutoConfig,
    config.LinearConfig,
    config.WmfAlsConfig,
    config.WmfAdagradConfig,
    config.BprConfig,
    config.LightGcnConfig,
)
PLAIN = {float: "number", int: "whole number", str: "text", bool: "true or false", type(None): "none"}
_PAGE = re.compile(r"docs/([\w/-]+)\.md")
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def settings_page() -> str:
    """One heading for each setting, so that a search finds it by its name."""
    whole = config.EraserConfig()
    top = {name: field for name, field in config.EraserConfig.model_fields.items() if not _is_section(getattr(whole, name))}
    parts = [TITLE, *(_setting("", name, field, "") for name, field in top.items())]
    for name in config.EraserConfig.model_fields:
        section = getattr(whole, name)
        if name == "model":
            for kind in MODELS:
                parts += _section(name, kind, _title(kind))
        elif _is_section(section):
            parts += _section(name, type(section), f"`{name}`")
    return "\n".join(parts)


def _title(kind: type[BaseModel]) -> str:
    """The heading of a model's settings: how to ask for that model."""
    own = [f"model.{key}={kind.model_fields[key].default}" for key in ("kind", "solver") if key in kind.model_fields]
    return f"`{' '.join(own)}`"


def _section(name: str, settings: type[BaseModel], title: str) -> Iterator[str]:
    yield f"\n## {title}\n\n{_one_paragraph(settings.__doc__)}\n"
    prefix = f"{settings.__name__}." if name == "model" else ""
    for key, field in settings.model_fields.items():
        yield _setting(f"{name}.", key, field, prefix)


def _setting(section: str, key: str, field: FieldInfo, prefix: str) -> str:
    name = f"{section}{key}"
    allowed = "; ".join([_type(field.annotation), *_limits(field.metadata)])
    lines = [
        f"### `{name}` {{ #{prefix}{name} }}",
        f"**Type** {allowed}. **Default** {_default(field)}.",
        _one_paragraph(field.description),
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _type(annotation: Any) -> str:
    """What a value may be, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *metadata = arguments
        return ", ".join([_type(base), *_limits(_flat(metadata))])
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        return ", or ".join(_type(argument) for argument in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}s"
    return PLAIN[annotation]


def _flat(metadata: Sequence[Any]) -> list[Any]:
    return [limit for one in metadata for limit in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _limits(metadata: Sequence[Any]) -> list[str]:
    found = [
        (word, getattr(one, key)) for one in metadata for key, word in LIMITS.items() if getattr(one, key, None) is not None
    ]
    return [f"{word} {'2^63' if limit == 2**63 else format(limit, 'g' if limit < 1e6 else ',')}" for word, limit in found]


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "depends on `kind`"
    if field.default is PydanticUndefined:
        return "none: give a value"
    if field.default is None:
        return "none"
    if field.default in ("", ()):
        return "empty"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def _one_paragraph(text: str | None) -> str:
    return _PAGE.sub(r"[\1](../\1.md)", " ".join((text or "").split()))


def _is_section(value: object) -> bool:
    return isinstance(value, BaseModel)
