#!/bin/sh
# Run the suite with coverage, build the docs and the package. Usage: scripts/test.sh [BIN-DIRECTORY]
#
# The broker adapters have suites of their own against real brokers (scripts/test_brokers.sh). Those that CI does not
# run yet are left out of the coverage figure too, so that it says something about what was run.
set -eu
BIN="${1:-.venv/bin}"
OUTSIDE="nats"

if [ "${CI:-}" = true ]; then
    "$BIN/python" -m scripts.brokers --install
fi
rm -f .coverage .coverage.*
NO_MKDOCS_2_WARNING=1 "$BIN/mkdocs" build --strict --quiet
"$BIN/python" scripts/check_package.py

skip="" omit=""
for broker in $OUTSIDE; do
    skip="$skip --ignore=tests/adapters/$broker --ignore=tests/contract/test_$broker.py"
    skip="$skip --deselect=tests/docs/test_snippets.py::test_the_blocks_of_a_page_run[docs/adapters/$broker.md]"
    omit="$omit,adapters/msgbus_$broker/*"
done
# shellcheck disable=SC2086 # words on purpose
COVERAGE_PROCESS_START=pyproject.toml "$BIN/coverage" run -m pytest tests $skip
"$BIN/coverage" combine --quiet
"$BIN/coverage" report --fail-under=95 --omit="${omit#,}"
