"""The figures of runs are kept in a page: the newest of each kind, and nothing else is touched."""

from __future__ import annotations

import pytest

from scripts import report

PAGE = """# Figures

<!-- begin: runs -->
<!-- end: runs -->

The end.
"""


def table(*rows: str) -> str:
    return "\n".join(["| broker | case  | n |", "| ------ | ----- | - |", *rows])


def test_a_row_takes_the_place_of_the_one_before(tmp_path):
    """Rows of other runs stay, in the order in which they came first."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    report.keep(page, "runs", table("| a      | x     | 1 |", "| b      | x     | 2 |"), key=2)
    report.keep(page, "runs", table("| a      | y     | 3 |"), key=2)
    report.keep(page, "runs", table("| a      | x     | 4 |"), key=2)

    head, _, rest = page.read_text().partition("<!-- begin: runs -->\n")
    assert (head, rest.partition("<!-- end: runs -->")[2]) == ("# Figures\n\n", "\n\nThe end.\n")
    assert rest.splitlines()[:5] == [
        "| broker | case | n |",
        "| --- | --- | --- |",
        "| a | x | 4 |",
        "| b | x | 2 |",
        "| a | y | 3 |",
    ]


def test_a_page_without_the_markers_is_refused(tmp_path):
    """Its text is left as it is."""
    page = tmp_path / "page.md"
    page.write_text("# Figures\n")

    with pytest.raises(ValueError, match="begin: runs"):
        report.keep(page, "runs", table("| a | x | 1 |"))
