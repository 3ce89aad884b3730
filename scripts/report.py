"""Keep the figures of runs in a page of the documentation: a row per run, the newest in place of the one before."""

from __future__ import annotations

from pathlib import Path

from scripts.docs_tables import replaced

__all__ = ["keep"]


def keep(page: Path, name: str, table: str, *, key: int = 1) -> None:
    """Put a table's rows between the page's markers of *name*; rows of other runs stay.

    Args:
        page: The page; it has the markers.
        name: The markers' name.
        table: A Markdown table.
        key: How many of the first columns say which run a row is of.

    Raises:
        ValueError: The page has no such markers.
    """
    text = page.read_text()
    marker = f"<!-- begin: {name} -->"
    if marker not in text:
        raise ValueError(f"{page} has no {marker!r}")
    head, line, *new = map(_cells, table.splitlines())
    old = map(_cells, text.partition(marker)[2].partition("<!--")[0].strip().splitlines()[2:])
    rows = {tuple(cells[:key]): cells for cells in (*old, *new)}
    lines = (f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(line), *rows.values()))
    page.write_text(replaced(text, name, "\n".join(lines)))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
