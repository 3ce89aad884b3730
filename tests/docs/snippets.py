"""Run the code blocks of a page, in order: Python in one namespace per page, shell commands in one folder per page.

An HTML comment in the line before a block says what is special about it:

``<!-- file: app.py -->``      the block is the content of a file in the page's folder
``<!-- append: app.py -->``    the block continues that file
``<!-- run: background -->``   the command goes on while the rest of the page runs; it must end well on SIGTERM
``<!-- run: no: reason -->``   the block is not run
``<!-- raises: ClosedError -->``  the block must raise that
``<!-- prints -->``            a text block: lines that the block before it must have printed, in this order
``<!-- prints: in any order -->``  the same without the order
``<!-- prints: background -->``  the same of the last command in the background, which is waited for

A line that begins with ``…`` stands for any that ends like it.

``<!-- test`` … ``-->`` holds Python that readers do not see: it proves what the page says.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

RUN = {"python", "sh"}
SHOWN = {"text", "json", "toml", "ini", "yaml", "sql"}
_COMMENT = re.compile(r"<!--\s*(file|append|run|raises|prints)(?::\s*(.*?))?\s*-->")
PATIENCE = 30
"""Seconds that a Python block, or the end of a command in the background, may take."""
LONGEST = 250
"""Seconds that a shell block may take: one of them runs the contract kit."""


@dataclass
class Block:
    """One fenced block, or a hidden test.

    Attributes:
        language: What is written behind the fence.
        text: The content.
        line: Where it begins in the page, from 1.
        notes: What the comment before it says.
    """

    language: str
    text: str
    line: int
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        """Whether it is not run."""
        return self.notes.get("run", "").startswith("no")


def blocks_of(page: Path) -> list[Block]:
    """Return the page's blocks in order."""
    return list(_blocks(page.read_text(encoding="utf-8").splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    notes: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        fence = re.match(r"( *)```(\S*)", line)
        if comment := _COMMENT.match(line.strip()):
            notes[comment[1]] = comment[2] or ""
        elif line.strip() == "<!-- test":
            end = lines.index("-->", number)
            yield Block("python", "\n".join(lines[number + 1 : end]), number + 2)
            number = end
        elif fence:
            end = next(n for n in range(number + 1, len(lines)) if lines[n].strip() == "```")
            inside = [content[len(fence[1]) :] for content in lines[number + 1 : end]]
            yield Block(fence[2], "\n".join(inside), number + 2, notes)
            notes, number = {}, end
        elif line.strip():
            notes = {}
        number += 1


class PageRun:
    """Runs one page.

    Args:
        page: The page.
        folder: An empty folder; the current directory while the page runs.
    """

    def __init__(self, page: Path, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._module = ModuleType(f"snippets_of_{page.stem.replace('-', '_')}")
        self._printed = ""
        self._background: list[subprocess.Popen[str]] = []
        self._log = folder / "background.log"

    def run(self, blocks: list[Block]) -> None:
        """Run all blocks; an assertion tells the page's line."""
        sys.modules[self._module.__name__] = self._module  # annotations are looked up there
        try:
            with asyncio.Runner() as runner:
                for block in blocks:
                    self._run(block, runner)
        finally:
            self._end()
            del sys.modules[self._module.__name__]
            for name in [n for n, m in sys.modules.items() if self._is_mine(m)]:
                del sys.modules[name]  # another page may have a file of the same name

    def _is_mine(self, module: ModuleType) -> bool:
        return str(getattr(module, "__file__", None) or "").startswith(f"{self._folder}/")

    def _run(self, block: Block, runner: asyncio.Runner) -> None:
        if "file" in block.notes:
            path = self._folder / block.notes["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text + "\n", encoding="utf-8")
        elif "append" in block.notes:
            with (self._folder / block.notes["append"]).open("a", encoding="utf-8") as file:
                file.write(f"\n{block.text}\n")
        elif "prints" in block.notes:
            self._check_printed(block)
        elif block.skipped or block.language in SHOWN:
            return
        elif block.language == "sh":
            self._shell(block)
        else:
            self._python(block, runner)

    def _python(self, block: Block, runner: asyncio.Runner) -> None:
        source = "\n" * (block.line - 1) + block.text
        code = compile(source, str(self._page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        expected = block.notes.get("raises")
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                result = eval(code, self._module.__dict__)
                if code.co_flags & inspect.CO_COROUTINE:
                    runner.run(_limited(result))
        except Exception as exc:
            if expected is None or expected not in {cls.__name__ for cls in type(exc).__mro__}:
                raise
            output.write(f"{type(exc).__name__}: {exc}\n")
        else:
            assert expected is None, f"{self._where(block)} did not raise {expected}"
        finally:
            self._printed = output.getvalue()

    def _shell(self, block: Block) -> None:
        if block.notes.get("run") == "background":
            self._log = self._folder / f"background-{block.line}.log"
            with self._log.open("w") as log:
                self._background.append(self._popen(f"exec {block.text}", log, subprocess.STDOUT))
            return
        process = self._popen(block.text, subprocess.PIPE, subprocess.PIPE)
        try:
            self._printed, errors = process.communicate(timeout=LONGEST)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the shell with all that it has started
            process.communicate()
            raise
        assert process.returncode == 0, f"{self._where(block)}: {errors}{self._printed}"

    def _popen(self, text: str, stdout: Any, stderr: Any) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "100",
            "PYTHONUNBUFFERED": "1",
        }
        return subprocess.Popen(
            ["sh", "-eu", "-c", text],
            cwd=self._folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def _check_printed(self, block: Block) -> None:
        how = block.notes["prints"]
        if how != "background":
            missing = _missing(block.text, self._printed, ordered=not how)
            assert missing is None, f"{self._where(block)}: {missing!r} is not in\n{self._printed}"
            return
        deadline = time.monotonic() + PATIENCE
        while (missing := _missing(block.text, self._log.read_text())) is not None:
            ended = any(process.poll() is not None for process in self._background)
            assert not ended and time.monotonic() < deadline, (
                f"{self._where(block)}: {missing!r} is not in\n{self._log.read_text()}"
            )
            time.sleep(0.05)

    def _end(self) -> None:
        """Stop what runs in the background as a service manager does."""
        codes = []
        for process in self._background:
            process.send_signal(signal.SIGTERM)
        for process in self._background:
            try:
                codes.append(process.wait(PATIENCE))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        assert not any(codes), [path.read_text() for path in self._folder.glob("background-*.log")]

    def _where(self, block: Block) -> str:
        return f"{self._page}:{block.line}"


def _missing(wanted: str, printed: str, *, ordered: bool = True) -> str | None:
    """Return the first wanted line that is not among the printed ones."""
    lines = [line.strip() for line in printed.splitlines()]
    start = 0
    for line in wanted.splitlines():
        fits = str.endswith if line.startswith("…") else str.__eq__
        found = next((n for n in range(start, len(lines)) if fits(lines[n], line.strip().removeprefix("…"))), None)
        if found is None:
            return line
        start = found + 1 if ordered else 0
    return None


async def _limited(coroutine: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        await coroutine
