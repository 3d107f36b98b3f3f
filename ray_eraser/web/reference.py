"""The API's reference as one page without scripts, generated from its OpenAPI description."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ray_eraser: HTTP API</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="page.css">
</head>
<body>
<header><h1>HTTP API</h1><nav><a href="./">Operator's page</a> <a href="openapi.json">openapi.json</a></nav></header>
<main>
<section class="card">
<p>Send a key in the header <code>Authorization: Bearer KEY</code>. A key with the role <code>read</code> may use every GET.
POST needs a key with the role <code>erase</code>.</p>
<p>Ids of users and items are strings in every answer, also if the log holds integers. In a body, write an id as a string, or
as an integer between -(2<sup>53</sup> - 1) and 2<sup>53</sup> - 1. Larger numbers are refused with 400, because JavaScript
rounds them and they may name another user. The string <code>"9007199254740993"</code> finds the integer id of these digits.
Ids are compared exactly: blanks, capitals and leading zeros count.</p>
<p>Errors are <code>{"error": "what is wrong, and the way out"}</code>.</p>
</section>
"""
_TAIL = "</main>\n</body>\n</html>\n"


def reference_page(openapi: dict[str, Any]) -> str:
    """Render all operations as HTML, with their parameters, bodies and answers."""
    operations = [
        _operation(method, path, operation, openapi)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    return _HEAD + "\n".join(operations) + _TAIL


def _operation(method: str, path: str, operation: dict[str, Any], openapi: dict[str, Any]) -> str:
    key = "" if "security" in operation else ' <span class="tag">no key needed</span>'
    parts = [
        f'<section class="card"><h2><code>{method.upper()} {escape(path)}</code>{key}</h2>',
        f"<p>{_text(operation.get('description', ''))}</p>",
    ]
    parameters = [
        (parameter["name"], f"{parameter['in']}{', required' if parameter.get('required') else ''}", _about(parameter))
        for parameter in operation.get("parameters", [])
    ]
    parts += _table("Parameters", parameters)
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        parts += _table("Body, JSON", _fields(schema, openapi))
        parts.append(f"<p>{_text(_resolved(schema, openapi).get('description', ''))}</p>")
    answers = sorted(operation["responses"].items())
    parts += _table("Answers", [(status, "", _answer(answer, openapi)) for status, answer in answers])
    return "\n".join([*parts, "</section>"])


def _answer(answer: dict[str, Any], openapi: dict[str, Any]) -> str:
    schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
    if schema.get("$ref", "").endswith("/Problem"):
        return _text(answer["description"])
    inner = schema.get("items", schema)
    resolved = _resolved(inner, openapi)
    said = resolved.get("description") or answer["description"]
    fields = ", ".join(f"<code>{escape(name)}</code>" for name in resolved.get("properties", {}))
    return _text(said) + (f" Fields: {fields}." if fields else "") + (" In a list." if "items" in schema else "")


def _fields(schema: dict[str, Any], openapi: dict[str, Any]) -> list[tuple[str, str, str]]:
    properties = _resolved(schema, openapi).get("properties", {})
    return [(name, " or ".join(_types(field)), _about(field)) for name, field in properties.items()]


def _types(schema: dict[str, Any]) -> Iterator[str]:
    for one in schema.get("anyOf", [schema]):
        if one.get("type") == "array":
            yield f"list of ({' or '.join(_types(one['items']))})"
        elif "type" in one:
            yield str(one["type"])


def _about(schema: dict[str, Any]) -> str:
    inner = schema.get("schema", schema)
    default = f" Default: <code>{escape(str(inner['default']))}</code>." if inner.get("default") is not None else ""
    return _text(schema.get("description", "")) + default


def _resolved(schema: dict[str, Any], openapi: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = openapi["components"]["schemas"][name] if name else schema
    return found


def _table(title: str, rows: list[tuple[str, str, str]]) -> list[str]:
    """Render rows of (plain text, plain text, HTML)."""
    if not rows:
        return []
    body = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{about}</td></tr>" for name, kind, about in rows
    )
    return [f"<h3>{title}</h3><table class='reference'>{body}</table>"]


def _text(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(" ".join(text.split())))
