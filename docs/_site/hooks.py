"""The parts of the documentation site that MkDocs builds from other files: the code, the notebook, and pages at the root."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

from commands import commands_page
from errors_reference import errors_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebooks import notebook_page
from python_reference import python_page
from settings_reference import settings_page

ROOT = Path(__file__).parents[2]
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "license.md",
    "docs/notebook.ipynb": "notebook.md",
}
"""Where in the site a file of the repository is a page: those at the root, and the notebook."""
REPORTS = "tests/benchmarks/results"
GENERATED = {
    "reference/settings.md": settings_page,
    "reference/commands.md": commands_page,
    "reference/errors.md": errors_page,
    "reference/python.md": python_page,
    "notebook.md": lambda: notebook_page(ROOT / "docs" / "notebook.ipynb"),
}

_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^(```python) \w+$", re.MULTILINE)
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"
_FOUND_FIRST = "---\nsearch:\n  boost: 2\n---\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages, the pages at the root, and the benchmark reports."""
    for name, page in FROM_ROOT.items():
        if page in GENERATED:
            continue
        text = (ROOT / name).read_text("utf-8")
        if name == "LICENSE":
            text = f"# License\n\n```text\n{text}\n```\n"
        files.append(File.generated(config, page, content=_with_site_links(text, PurePosixPath(), page)))
    for page, make in GENERATED.items():
        first = _FOUND_FIRST if page.startswith("reference/") else ""
        files.append(File.generated(config, page, content=first + make()))
    for report in sorted((ROOT / REPORTS).glob("*.md")):
        text = _NOT_SEARCHED + report.read_text("utf-8")
        files.append(File.generated(config, f"reports/{report.name}", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links at pages of the site, and drop the mark of examples that the tests run."""
    source = page.file.src_uri
    if source not in FROM_ROOT.values() and not source.startswith("reports/"):
        markdown = _with_site_links(markdown, PurePosixPath("docs") / PurePosixPath(source).parent, source)
    return _FENCE.sub(r"\1", markdown)


def _with_site_links(markdown: str, folder: PurePosixPath, page: str) -> str:
    """The same text with relative links that work in the site.

    Args:
        markdown: a page's text, whose links are relative to `folder`.
        folder: where in the repository the text stands.
        page: where in the site it goes.
    """

    def in_site(found: re.Match[str]) -> str:
        target, mark, anchor = found[2].partition("#")
        if "://" in target or not target:
            return found[0]
        path = posixpath.normpath(str(folder / target))
        if path in FROM_ROOT:
            path = FROM_ROOT[path]
        elif path.startswith(REPORTS) and path.endswith(".md"):
            path = f"reports/{PurePosixPath(path).name}"
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        else:
            return found[0]
        return f"{found[1]}{posixpath.relpath(path, posixpath.dirname(page) or '.')}{mark}{anchor}{found[3]}"

    return _LINK.sub(in_site, markdown)
