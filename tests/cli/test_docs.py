"""The page about the command line knows every command and every option."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from msgbus.cli._app import app

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
EVERYWHERE = {"--help", "--url", "--json", "--group", "--app-dir"}


def commands():
    top = typer.main.get_command(app)
    for name in top.list_commands(None):
        command = top.get_command(None, name)
        yield name, command, getattr(command, "commands", {})


@pytest.mark.parametrize(("name", "command", "parts"), list(commands()), ids=lambda v: v if isinstance(v, str) else "")
def test_the_page_tells_each_command_s_options(name, command, parts):
    heading = next(line for line in PAGE.splitlines() if line.startswith("## ") and f"msgbus {name}" in line)
    section = PAGE.partition(heading)[2].partition("\n## ")[0]

    for part in parts:
        assert f"`{part}`" in section
    for one in (command, *parts.values()):
        for parameter in one.params:
            for option in parameter.opts if not getattr(parameter, "hidden", False) else ():
                assert not option.startswith("--") or option in EVERYWHERE or option in section, option
