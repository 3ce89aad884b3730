"""Starting and stopping the library's consumers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import aiokafka.errors as kafka

from msgbus_kafka._errors import broker_error

__all__ = ["start_consumer", "stop_consumer"]

_log = logging.getLogger("msgbus.kafka")
_STOP_TIMEOUT = 4.0


async def start_consumer(consumer: Any, doing: str) -> None:
    """Start a consumer; raises `BrokerError`, and then it is stopped."""
    try:
        await consumer.start()
        await asyncio.sleep(0)  # stopped before its tasks ran for the first time, it would raise CancelledError
    except BaseException as exc:
        await stop_consumer(consumer)
        if isinstance(exc, kafka.KafkaError | OSError):
            raise broker_error(exc, doing) from exc
        raise


async def stop_consumer(consumer: Any) -> None:
    """Stop a consumer, by force if it hangs in a rebalance or in a request that nobody answers."""
    stopping = asyncio.create_task(consumer.stop())
    for _ in range(2):
        done, _ = await asyncio.wait([stopping], timeout=_STOP_TIMEOUT)
        if done:
            if not stopping.cancelled() and (exc := stopping.exception()):
                _log.debug("while stopping a consumer: %r", exc)
            return
        with contextlib.suppress(kafka.KafkaError, OSError):
            await consumer._client.close()  # noqa: SLF001 - ends the requests it waits for
    stopping.cancel()
    _log.warning("a consumer did not stop in %g s", 2 * _STOP_TIMEOUT)
