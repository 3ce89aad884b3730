"""Hooks for mkdocs: a navigation that finds new pages by itself, and a sign of reStructuredText taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Replace ``folder/*`` in the navigation by the folder's pages that are not named elsewhere."""
    docs = Path(config["docs_dir"])
    named = set(_pages(config["nav"]))
    config["nav"] = _expand(config["nav"], docs, named)
    return config


def on_page_content(html: str, **_: Any) -> str:
    """Take away the double colons before literal blocks in docstrings."""
    return html.replace("<p>::</p>", "").replace("::</p>", ":</p>")


def _pages(nav: list[Any]) -> list[str]:
    found: list[str] = []
    for entry in nav:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += _pages(value) if isinstance(value, list) else [value]
    return found


def _expand(nav: list[Any], docs: Path, named: set[str]) -> list[Any]:
    expanded: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("/*"):
            folder = docs / entry[:-2]
            pages = [str(page.relative_to(docs)) for page in sorted(folder.glob("*.md"))]
            expanded += [page for page in pages if page not in named]
        elif isinstance(entry, dict) and isinstance(value := next(iter(entry.values())), list):
            if inside := _expand(value, docs, named):
                expanded.append({next(iter(entry)): inside})
        else:
            expanded.append(entry)
    return expanded
