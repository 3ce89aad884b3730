"""Every code block of the documentation runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.docs.snippets import RUN, SHOWN, PageRun, blocks_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
TESTED_ELSEWHERE = {"docs/reference/cli.md": "tests/cli runs every command"}
"""Pages whose blocks are shown only, and why."""
NOT_RUN = {
    "README.md": 2,
    "docs/development/brokers.md": 4,
    "docs/development/contributing.md": 1,
    "docs/development/faults.md": 3,
    "docs/howto/idempotency.md": 1,
    "docs/howto/routes.md": 1,
    "docs/reference/stores.md": 1,
    "docs/reliability.md": 2,
}
"""How many blocks of each page are not run; each says why in its page."""


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder: the current directory, with a broker of its own."""
    for variable in [name for name in os.environ if name.startswith("MSGBUS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("MSGBUS_URL", f"sqlite:///{tmp_path}/docs.db")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", [page for page in PAGES if _name(page) not in TESTED_ELSEWHERE], ids=_name)
def test_the_blocks_of_a_page_run(page: Path, folder: Path) -> None:
    """All Python and shell blocks of the page do what the page says."""
    blocks = blocks_of(page)

    PageRun(page, folder).run(blocks)


def test_the_links_of_the_readme_lead_somewhere() -> None:
    """Each relative link in the README names a file or folder (mkdocs checks those between the pages)."""
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))

    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_block_is_run_or_counted() -> None:
    """No block is left out by accident: its language is known, and what is not run is listed here."""
    skipped = {}
    for page in PAGES:
        blocks = blocks_of(page)
        for block in blocks:
            assert block.language in RUN | SHOWN, f"{page}:{block.line}: {block.language!r}"
        if count := sum(block.skipped and block.language in RUN for block in blocks):
            skipped[_name(page)] = count

    assert skipped == NOT_RUN
