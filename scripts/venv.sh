#!/bin/sh
# Make the development environment: a virtual environment with msgbus (editable) and its development tools.
set -eu
: "${PYTHON:=python3}" "${VENV:=.venv}"

if ! command -v "$PYTHON" >/dev/null 2>&1; then
    echo "msgbus needs Python 3.11 or newer; $PYTHON was not found (apt-get install python3 python3-venv)" >&2
    exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "msgbus needs Python 3.11 or newer, $PYTHON is $("$PYTHON" --version); try: make PYTHON=python3.12 $*" >&2
    exit 1
fi
if ! "$PYTHON" -m venv "$VENV" >/dev/null; then
    echo "cannot make a virtual environment in $VENV (on Debian: apt-get install python3-venv)" >&2
    exit 1
fi
echo "Preparing $VENV (once) ..."
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable . --group dev
