"""The benchmark suite, `make bench`: msgbus beside the raw clients and other frameworks, on the same brokers.

`contender` says what takes part and `contenders` has one file per library and broker; `cases` is the work, written
once for all; `worker` runs one contender in a process of its own, `runner` takes them in turn, round by round;
`results` keeps what was measured and `report` writes it up.
"""
