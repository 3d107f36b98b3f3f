"""A notebook as a page: its text, its code, and the outputs that are stored in it. Nothing is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def notebook_page(path: Path) -> str:
    """The notebook in Markdown, with a link to the file itself below its title."""
    parts = [part for cell in json.loads(path.read_text("utf-8"))["cells"] for part in _cell(cell)]
    title, *rest = parts
    return "\n\n".join([title, f"[Download this notebook]({path.name}).", *rest]) + "\n"


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield f"```text\n{''.join(output['text']).rstrip()}\n```"
        elif "text/html" in output["data"]:
            yield "".join(output["data"]["text/html"])
        else:
            yield f"```text\n{''.join(output['data']['text/plain'])}\n```"
