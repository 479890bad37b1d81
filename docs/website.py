"""What mkdocs.yml alone cannot say: pages from outside of docs/, and an API reference of every public module.

Files keep their places in the repository (docs/fit.md, README.md, benchmarks/…), so the links between them are right
there and on the website.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
#: As docs/stability.md lists them: a module that is added there gets its page.
MODULES = re.findall(r"^- `(dsgan_datasets[\w.]*)`$", (ROOT / "docs" / "stability.md").read_text(), re.MULTILINE)
API = {f"api/{module}.md": f"# {module}\n\n::: {module}\n" for module in MODULES}
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages of the API into the navigation."""
    # The whole name would not fit into the column, and all begin alike.
    pages = [{module.removeprefix("dsgan_datasets."): f"api/{module}.md"} for module in sorted(MODULES)]
    config.nav = _filled(config.nav, {"API": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The README, all that it and its pages link to, and the API.

    Raises:
        FileNotFoundError: a page links to what is not there.
    """
    todo, found = ["README.md"], set()
    while todo:
        path = todo.pop()
        if path not in found and (ROOT / path).is_file():
            found.add(path)
            todo += _links(path) if path.endswith(".md") else []
    # A page that nobody links to is added, too, so that a missing entry of the navigation is noticed.
    own = {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    pages = [_file(path, config) for path in sorted(found | own)]
    generated = [File.generated(config, path, content=text) for path, text in API.items()]
    theme = [f for f in files if f.src_dir != config.docs_dir]
    return Files([*theme, *pages, *generated])


def _links(page: str) -> list[str]:
    folder = (ROOT / page).parent
    return [str((folder / link).resolve().relative_to(ROOT)) for link in LINK.findall((ROOT / page).read_text())]


def _file(path: str, config: MkDocsConfig) -> File:
    return File(path, str(ROOT), config.site_dir, config.use_directory_urls)


def _filled(nav: Any, placeholders: dict[str, Any]) -> Any:
    if isinstance(nav, list):
        return [_filled(each, placeholders) for each in nav]
    if isinstance(nav, dict):
        return {title: _filled(each, placeholders) for title, each in nav.items()}
    return placeholders.get(nav, nav)


class Examples(griffe.Extension):
    """Our heading is "Example:"; griffe knows "Examples:" as the heading of code. Fields that check themselves are
    shown with their default alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes an object that was loaded."""
        if isinstance(obj, griffe.Attribute):
            obj.value = _default(obj.value)
        if isinstance(obj, griffe.Function):
            for parameter in obj.parameters:
                parameter.default = _default(parameter.default)
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def _default(value: Any) -> Any:
    """The default of a field of a recipe's section; other values as they are."""
    checked = isinstance(value, griffe.ExprCall) and str(value.function) == "_checked"
    return value.arguments[0] if checked else value
