"""The command line: whatever is typed, it ends with one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from msgbus.cli._app import app
from tests.fuzz.texts import TEXTS

COMMANDS = st.sampled_from(["send", "publish", "dlq", "status", "check", "seek", "store", "version", "nosuch"])
TOKENS = """
    orders order.placed order.* -- - @ @nosuch.json {} [] null 1 -1 1e999 nan list show replay drop purge stats
    --help --text --bytes-file --key --delay --expires --header --id --many --url --group --all --yes --limit --json
    --app --app-dir --to --from --beginning --end --namespace a=b = app:bus : .x:y os:sep os.path:join
    memory:// sqlite:///x.db sqlite:// nosuch://u:secret@h kafka://h:99999 ?
""".split()  # noqa: SIM905
WORDS = st.one_of(st.sampled_from([*TOKENS, "x=\r\ny"]), TEXTS.filter(lambda text: len(text) < 1000))


@settings(max_examples=150)
@given(COMMANDS, st.lists(WORDS, max_size=6), st.binary(max_size=100))
def test_any_command_line(command, words, given_input):
    """It works, fails with 1 or is misused with 2; it never shows a traceback, nor says that it is a bug of ours."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("app.py").write_text("from msgbus import Bus\nbus = Bus()\n")
        with mock.patch.dict(os.environ, {"MSGBUS_URL": "sqlite:///bus.db"}):
            done = CliRunner().invoke(app, [command, *words], input=given_input)

    assert done.exit_code in (0, 1, 2), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    assert "this is a bug in msgbus" not in done.output
    assert "secret" not in done.output
