#!/bin/sh
# Run broker adapters' own tests and the contract kit against real brokers. Usage: scripts/test_brokers.sh BIN BROKER...
set -eu
BIN="$1"
shift
for broker in "$@"; do
    servers="$broker"
    if [ "$broker" = aws ]; then servers=elasticmq,ministack,fauxqs,moto,dynamodb; fi
    "$BIN/python" -m scripts.brokers --install "$servers"
    "$BIN/python" -m pytest "tests/contract/test_$broker.py" "tests/adapters/$broker"
done
