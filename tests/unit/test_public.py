"""What `import ray_eraser` offers: every class that a user meets has its name there."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import pytest

import ray_eraser

CLASSES = [name for name in ray_eraser.__all__ if inspect.isclass(getattr(ray_eraser, name))]
README = Path(__file__).parents[2] / "README.md"


def test_every_public_name_is_there_and_no_other_is_promised() -> None:
    assert ray_eraser.__all__ == sorted(set(ray_eraser.__all__))
    for name in ray_eraser.__all__:
        assert getattr(ray_eraser, name).__name__ == name
    assert set(dir(ray_eraser)) == {*ray_eraser.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Receit'"):
        _ = ray_eraser.Receit


def calls_of(name: str) -> list[typing.Any]:
    """The public methods of a class that a program calls, and its constructor."""
    made = getattr(ray_eraser, name)
    methods = [getattr(made, method) for method in dir(made) if not method.startswith("_")]
    own = [method for method in methods if callable(method) and getattr(method, "__module__", "").startswith("ray_eraser")]
    return [*own, made.__init__]


@pytest.mark.parametrize("name", ["Client", "Ticket", "Coordinator", "Observer", "Dataset"])
def test_every_class_in_a_signature_is_public(name: str) -> None:
    named = {word for call in calls_of(name) for word in _words(call)}
    ours = {word for word in named if _is_ours(word)}
    assert ours <= set(ray_eraser.__all__)


@pytest.mark.parametrize("name", ["connect", "deploy", "evaluate", "audit", "read_dataset", "load_config"])
def test_every_class_in_the_signature_of_a_function_is_public(name: str) -> None:
    assert {word for word in _words(getattr(ray_eraser, name)) if _is_ours(word)} <= set(ray_eraser.__all__)


INSIDE = {
    "ByKeys", "Compute", "DataConfig", "GenerationRow", "Scorer", "Store", "KeyedPairs", "Pairs", "Work",
}  # fmt: skip
"""Parts of what public calls take and give, for extensions and tools: at home in their own modules."""


def _words(call: typing.Any) -> set[str]:
    signature = getattr(call, "__annotations__", {})
    return {word for hint in signature.values() for word in re.findall(r"[A-Z]\w+", str(hint))}


def _is_ours(word: str) -> bool:
    """Whether some module of the package defines a class of this name."""
    defined = re.compile(rf"^class {word}\b", re.MULTILINE)
    files = Path(ray_eraser.__file__).parent.rglob("*.py")
    return word not in INSIDE and any(defined.search(file.read_text("utf-8")) for file in files)


def test_every_class_that_the_first_page_names_is_public() -> None:
    named = set(re.findall(r"ray_eraser\.([A-Za-z]\w+)", README.read_text("utf-8")))
    modules = {path.stem for path in Path(ray_eraser.__file__).parent.iterdir()}
    assert named - modules <= set(ray_eraser.__all__)


def test_every_error_that_a_caller_may_have_to_tell_from_others_is_public() -> None:
    from ray_eraser import errors

    inner = {"DeviceMemoryError", "UnexpectedError"}  # raised where shards train; caught as RayEraserError
    every = {name for name, made in vars(errors).items() if inspect.isclass(made) and made.__module__ == errors.__name__}
    assert every - inner <= set(ray_eraser.__all__)
