"""The clients: made once, shared by threads, closed when the last call has ended.

boto3 blocks, so calls run in threads: a small pool for publishing, another for everything else (a publisher that is
throttled must not stop the acknowledgements), and polls, which wait, in pools of their subscriptions. Clients may be
shared by threads; sessions may not, so all clients are made in one go when the adapter opens.

The SDK retries nothing: it cannot say that a first try may have worked, and hides messages that a lost answer took.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import boto3
import boto3.session
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader, create_loader

from msgbus.adapter import AdapterConfig, Health
from msgbus.errors import AccessDenied, BrokerUnavailable, ClosedError
from msgbus_aws._errors import Gone, code_of, translate
from msgbus_aws._options import AwsOptions, Place

__all__ = ["Link", "make_clients"]

T = TypeVar("T")

_CONNECT = 5.0
_POLL_CONNECTIONS = 200
"""Connections kept for polls. Fewer only means that more are made anew; they exist as they are used."""
_SENDERS = 4
_SETTLERS = 6
_TRIES = 4
"""How often an administrative call is tried while the service is busy or away."""
_CLOSING = 2.0
"""Seconds that closing waits for calls under way; what takes longer ends by itself."""


@functools.cache
def _loader() -> Loader:
    """Return what reads the descriptions of the services, which are files of botocore and large: once per process."""
    return create_loader()


def make_clients(services: dict[str, dict[str, Any]], place: Place, endpoint: str, service: str) -> dict[str, Any]:
    """Return a client for each of *services* (a name and extra configuration). It takes a while: do it in a thread."""
    core = botocore.session.get_session()
    core.register_component("data_loader", _loader())
    session = boto3.session.Session(botocore_session=core)
    application = service.replace(" ", "-") if service.isascii() and service.isprintable() else "unnamed"
    return {
        name: session.client(
            name.partition("-")[0],
            region_name=place.region,
            endpoint_url=endpoint or None,
            config=Config(
                connect_timeout=_CONNECT,
                retries={"total_max_attempts": 1, "mode": "standard"},
                tcp_keepalive=True,
                parameter_validation=False,  # a fifth of a call's time; what we send is checked where it is made
                # Given as a whole: the one that is put together for each call costs more than the call's signature.
                user_agent=f"Boto3/{boto3.__version__} msgbus/{application}",
                **extra,
            ),
        )
        for name, extra in services.items()
    }


class Link:
    """The way to the services.

    Args:
        place: Where they are.
        options: The URL's.
        config: What the bus told the adapter.
        on_health: Called with each change of health.
    """

    def __init__(
        self, place: Place, options: AwsOptions, config: AdapterConfig, on_health: Callable[[Health], None]
    ) -> None:
        self.place = place
        self.options = options
        self.config = config
        self.healthy = False
        self._on_health = on_health
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._running = 0
        self._state = "not opened"
        self._senders = ThreadPoolExecutor(_SENDERS, "msgbus-aws-send")
        self._callers = ThreadPoolExecutor(_SETTLERS, "msgbus-aws-call")

    @property
    def sqs(self) -> Any:
        """The SQS client, or None before `open`."""
        return self._clients.get("sqs")

    @property
    def partition(self) -> str:
        """The AWS partition, the second word of all ARNs."""
        return str(self._clients["sqs"].meta.partition)

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make the clients, and see that SQS answers, by a question that needs no permission to be answered."""
        self._check_not_closed()
        if not self._clients:
            self._clients = await asyncio.wrap_future(self._callers.submit(self._make))
        self._state = "open"
        try:
            await self.call("sqs", "get_queue_url", "connecting", QueueName="msgbus", patient=False)
        except Gone:
            pass
        except AccessDenied as exc:
            if code_of(exc.__cause__) not in ("AccessDenied", "AccessDeniedException"):
                raise  # no credentials, or wrong ones; ones without this permission will do

    def _make(self) -> dict[str, Any]:
        timeout = self.options.timeout
        services: dict[str, dict[str, Any]] = {
            "sqs": {"read_timeout": timeout, "max_pool_connections": _SENDERS + _SETTLERS},
            "sqs-polls": {"read_timeout": self.options.wait + timeout, "max_pool_connections": _POLL_CONNECTIONS},
        }
        if self.options.sns:
            services["sns"] = {"read_timeout": timeout, "max_pool_connections": _SENDERS + _SETTLERS}
        if self.options.large:
            services["s3"] = {"read_timeout": 60, "max_pool_connections": 2 * _SENDERS}
        return make_clients(services, self.place, self.options.endpoint, self.config.service)

    def check_open(self) -> None:
        """Raise `ClosedError` unless it is open."""
        if self._state != "open":
            raise ClosedError(f"the sqs adapter is {self._state}")

    def _check_not_closed(self) -> None:
        if self._state == "closed":
            raise ClosedError("the sqs adapter is closed")

    async def aclose(self) -> None:
        """Close; calls under way get a moment, and polls end by themselves."""
        if self._state == "closed":
            return
        self._state = "closed"
        self._senders.shutdown(wait=False)
        self._callers.shutdown(wait=False)
        deadline = asyncio.get_running_loop().time() + _CLOSING
        while self._busy() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - threads have no event
            await asyncio.sleep(0.005)
        with self._lock:
            idle = not self._running
        if idle:
            self._close_clients()

    def _busy(self) -> bool:
        return any(t.is_alive() for pool in (self._senders, self._callers) for t in pool._threads)  # noqa: SLF001

    def _close_clients(self) -> None:
        for client in self._clients.values():
            client.close()

    # -- calls --------------------------------------------------------------------------------------------------

    def sync(self, client: str, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a client in this thread; raises what boto3 raises."""
        with self._lock:
            self._running += 1
        try:
            answer: dict[str, Any] = getattr(self._clients[client], method)(**arguments)
        except (BotoCoreError, ClientError) as exc:
            self._note(exc)
            raise
        else:
            self._note(None)
            return answer
        finally:
            with self._lock:
                self._running -= 1
                last = self._state == "closed" and not self._running
            if last:
                self._close_clients()

    def _note(self, exc: Exception | None) -> None:
        """Keep the health true: an answer is an answer, even if it is a refusal."""
        reason = "" if exc is None else str(exc)
        healthy = exc is None or (
            isinstance(exc, ClientError) and not isinstance(translate(exc, "sqs", ""), BrokerUnavailable)
        )
        if healthy != self.healthy and self._state != "closed":
            self.healthy = healthy
            self._on_health(Health(healthy, "" if healthy else reason))

    async def send(self, client: str, method: str, **arguments: Any) -> dict[str, Any]:
        """Call a client in the pool for publishing; raises what boto3 raises."""
        return await self._run(self._senders, client, method, arguments)

    async def settle(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Call SQS in the pool for everything else; raises what boto3 raises."""
        return await self._run(self._callers, "sqs", method, arguments)

    async def call(
        self, client: str, method: str, doing: str, *, patient: bool = True, **arguments: Any
    ) -> dict[str, Any]:
        """Call a client for an administrative matter; a busy service is asked again for a moment.

        Raises:
            BrokerError: What boto3 raised, translated; `Gone` for what does not exist.
        """
        failures = 0
        while True:
            self.check_open()
            try:
                return await self._run(self._callers, client, method, arguments)
            except (BotoCoreError, ClientError) as exc:
                error = translate(exc, client.partition("-")[0], doing)
                failures += 1
                if not patient or not isinstance(error, BrokerUnavailable) or failures >= _TRIES:
                    raise error from exc
            await self.config.clock.sleep(0.1 * 2**failures)

    async def in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function that makes several calls in the pool for everything else."""
        return await asyncio.wrap_future(self._submit(self._callers, function, *arguments))

    async def _run(
        self, pool: ThreadPoolExecutor, client: str, method: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        return await asyncio.wrap_future(self._submit(pool, functools.partial(self.sync, client, method, **arguments)))

    def _submit(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
        try:
            return pool.submit(function, *arguments)
        except RuntimeError:  # it was shut down
            self._check_not_closed()
            raise
