#!/bin/sh
# Run the suite with coverage, build the docs and the package. Usage: scripts/test.sh [BIN-DIRECTORY]
set -eu
BIN="${1:-.venv/bin}"

if [ "${CI:-}" = true ]; then
    "$BIN/python" -m scripts.brokers --install
fi
rm -f .coverage .coverage.*
NO_MKDOCS_2_WARNING=1 "$BIN/mkdocs" build --strict --quiet
"$BIN/python" scripts/check_package.py

COVERAGE_PROCESS_START=pyproject.toml "$BIN/coverage" run -m pytest tests
"$BIN/coverage" combine --quiet
"$BIN/coverage" report --fail-under=95
