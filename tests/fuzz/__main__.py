"""Let a coverage-guided fuzzer find inputs for the fuzz tests: ``python -m tests.fuzz [--seconds 60] [TEST...]``.

The suite runs each test on the same hundred inputs every time; here atheris looks for those that reach new code. It
ends at the first that breaks a test, and shows it: make it an ``@example`` of that test.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atheris

OURS = ["msgbus", *(path.name for path in Path("adapters").glob("msgbus_*"))]
SLOW = 60
"""Seconds for one input, after which it counts as a hang."""


def found() -> Iterator[tuple[str, Any]]:
    """Yield all fuzz tests with their names; what they test is instrumented while it is imported."""
    with atheris.instrument_imports(include=OURS):
        for file in sorted(Path(__file__).parent.glob("test_*.py")):
            module = importlib.import_module(f"tests.fuzz.{file.stem}")
            yield from ((name, test) for name, test in vars(module).items() if hasattr(test, "hypothesis"))


def main() -> None:
    """Fuzz; the exit status is not 0 if an input broke a test."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("tests", nargs="*", metavar="TEST", help="part of a test's name; default: all tests")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    tests = [(n, t) for n, t in found() if not options.tests or any(part in n for part in options.tests)]

    def one(data: bytes) -> None:
        name, test = tests[data[0] % len(tests) if data else 0]  # the first byte chooses
        try:
            test.hypothesis.fuzz_one_input(data[1:])
        except BaseException:
            print(f"broken: {name}", file=sys.stderr)
            test()  # Hypothesis has kept the input: it tries it again, makes it small, and says what it is
            raise

    folder = tempfile.mkdtemp(prefix="msgbus-fuzz-")
    flags = [
        f"-max_total_time={options.seconds}",
        f"-timeout={SLOW}",
        f"-artifact_prefix={folder}/",
        "-max_len=4096",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
