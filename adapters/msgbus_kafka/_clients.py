"""Starting and stopping the library's clients and consumers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import aiokafka.errors as kafka

from msgbus_kafka._errors import broker_error

__all__ = ["close_client", "mind", "start_consumer", "stop_consumer"]

_log = logging.getLogger("msgbus.kafka")
_STOP_TIMEOUT = 4.0


def mind(client: Any) -> None:
    """Let a client survive a connection that was closed a moment ago.

    uvloop raises RuntimeError there, and the library only expects OSError: what sends, fetches or keeps the metadata
    would end for good, and not tell.
    """
    send = client.send

    async def send_or_say_why(*args: Any, **options: Any) -> Any:
        try:
            return await send(*args, **options)
        except RuntimeError as exc:
            raise kafka.KafkaConnectionError(str(exc)) from exc

    client.send = send_or_say_why

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None and client._sync_task is task:  # noqa: SLF001
            _log.info("a client's metadata could not be brought up to date, trying again: %r", exc)
            client._sync_task = asyncio.create_task(client._md_synchronizer())  # noqa: SLF001
            client._sync_task.add_done_callback(ended)  # noqa: SLF001

    client._sync_task.add_done_callback(ended)  # noqa: SLF001


async def close_client(client: Any) -> None:
    """Close a client, whatever its connections think of it."""
    with contextlib.suppress(kafka.KafkaError, OSError, RuntimeError):
        await client.close()


async def start_consumer(consumer: Any, doing: str) -> None:
    """Start a consumer; raises `BrokerError`, and then it is stopped."""
    try:
        await consumer.start()
        mind(consumer._client)  # noqa: SLF001 - there is no public way to it
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
                await close_client(consumer._client)  # noqa: SLF001 - it stopped half-way
            return
        await close_client(consumer._client)  # noqa: SLF001 - ends the requests it waits for
    stopping.cancel()
    _log.warning("a consumer did not stop in %g s", 2 * _STOP_TIMEOUT)
