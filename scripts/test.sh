#!/bin/sh
# Run the suite with coverage, build the docs and the package. Usage: scripts/test.sh [BIN-DIRECTORY]
set -eu
BIN="${1:-.venv/bin}"

if [ "${CI:-}" = true ]; then
    "$BIN/python" -m scripts.brokers --install
fi
failed=.pytest_cache/v/cache/lastfailed
rm -f .coverage .coverage.* "$failed"
NO_MKDOCS_2_WARNING=1 "$BIN/mkdocs" build --strict --quiet
"$BIN/python" scripts/check_package.py

# Brokers flush to the disk all the time (Kafka a dozen files for each topic): where that takes seconds, tests fail by
# their deadlines. What a SIGKILL leaves is the same in memory.
if [ -z "${MSGBUS_TEST_DATA:-}" ] && [ -w /dev/shm ] && [ "$(df -Pk /dev/shm | awk 'NR == 2 {print $4}')" -gt 4194304 ]; then
    export MSGBUS_TEST_DATA=/dev/shm
fi
status=0
COVERAGE_PROCESS_START=pyproject.toml "$BIN/coverage" run -m pytest tests || status=$?
if [ "$status" -gt 1 ] && [ -f "$failed" ]; then
    # pytest was stopped in the middle and has no summary: what had failed until then.
    sed -n 's/^  "\(.*\)": true,*$/FAILED \1/p' "$failed"
fi
[ "$status" -eq 0 ] || exit "$status"
"$BIN/coverage" combine --quiet
"$BIN/coverage" report --fail-under=95
