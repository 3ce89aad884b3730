"""nats-py's client with its faults mended, and how one is connected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult

from nats import errors
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from msgbus.adapter import AdapterConfig, BusURL
from msgbus.errors import AccessDenied, ConfigError
from msgbus_nats._errors import translate
from msgbus_nats._options import NatsOptions
from msgbus_nats._reader import Handler, Reader

__all__ = ["Dialer", "Handler", "NatsClient", "frame"]

_PORT = 4222
_OLDEST = (2, 10)
"""Consumers with several filter subjects, which topics need, came with nats-server 2.10."""


def frame(subject: str, body: bytes, reply: str = "", headers: bytes = b"") -> tuple[bytes, ...]:
    """Return a message as it goes over the wire, in pieces.

    Args:
        subject: Where to.
        body: The body.
        reply: Where answers go.
        headers: The encoded header block.
    """
    if headers:
        line = f"HPUB {subject} {reply} {len(headers)} {len(headers) + len(body)}\r\n"
    else:
        line = f"PUB {subject} {reply} {len(body)}\r\n"
    return line.encode(), headers, body, b"\r\n"


class NatsClient(Client):
    """nats-py's client with a short cut for what is busy, and an end without waiting.

    What is overridden here is not public, and held to what it is by tests. It is worth it:

    - nats-py hands each message over through a buffer, a task, a queue and another task; here a handler is called as
      the message comes in, which spares most of its time, and three turns of the event loop. See `Reader`.
    - It writes the PING past its own buffer, so that `flush` returned before the server had read anything, and `drain`
      dropped messages that were still on their way.
    - Its `publish` checks and encodes each header on its own, and takes one message at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[bytes, Handler] = {}
        self._reader: Reader | None = None
        self._pushing = False
        self._written = 0
        self._alone = True
        self._failing: set[asyncio.Task[None]] = set()

    @property
    def server(self) -> tuple[str, str]:
        """The server's id, another one each time it is started, and the name that it keeps, empty outside a cluster."""
        info = self._server_info
        return info["server_id"], info.get("server_name", "") if "cluster" in info else ""

    # -- incoming -----------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Read what comes in from now on."""
        incoming: asyncio.StreamReader = self._transport._io_reader  # type: ignore[union-attr]  # noqa: SLF001
        self._reader = Reader(
            self._handlers,
            arrived=self._arrived,
            pong=self._ponged,
            pass_on=incoming.feed_data,
            is_behind=lambda: bool(incoming._buffer or self._ps.buf),  # type: ignore[attr-defined]  # noqa: SLF001
            failed=self._handler_failed,
        )
        incoming.feed_data = self._reader.feed  # type: ignore[method-assign, assignment]

    def _arrived(self) -> None:
        """Something is about to be read, which may be answered."""
        self._alone = self._written <= 1
        self._written = 0

    async def listen(
        self, subject: str, handler: Handler, queue: str = "", *, stored: Callable[[int], None] | None = None
    ) -> NatsSubscription:
        """Subscribe with a handler that is called at once, and that must not wait for the server.

        Nothing is queued here, so nothing is ever dropped, as nats-py's own subscriptions do with what comes too fast.

        Args:
            subject: What to listen to.
            handler: Takes the messages.
            queue: The queue group.
            stored: See `Reader.listen`; the subject is an inbox and a ``*`` then.
        """

        async def never(message: Msg) -> None:
            """Nothing comes this way: `_process_msg` goes before it."""

        sid = b"%d" % (self._sid + 1)  # the next one's; it must be known before the first message can come
        self._handlers[sid] = handler
        if stored is not None and self._reader is not None:
            self._reader.listen(subject[:-1].encode(), sid, stored)
        return await self.subscribe(subject, queue, cb=never, pending_msgs_limit=0, pending_bytes_limit=0)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._handlers.pop(b"%d" % sid, None)

    def _handler_failed(self, exc: Exception) -> None:
        task = asyncio.ensure_future(self._error_cb(exc))  # as nats-py does
        self._failing.add(task)
        task.add_done_callback(self._failing.discard)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        handler = self._handlers.get(b"%d" % sid)
        if handler is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:  # it came in together with the server's greeting
            try:
                handler(subject, reply, headers or b"", data)
            except Exception as exc:  # noqa: BLE001 - as in the reader
                self._handler_failed(exc)

    def _ponged(self) -> None:
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():
                future.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    # -- outgoing -----------------------------------------------------------------------------------------------

    def write(self, *frames: Sequence[bytes], now: bool = False) -> None:
        """Send what `frame` made, at once or with what else is written in this turn of the event loop.

        A single message is sent at once, too, if there was no more than one between the last two reads: somebody sends
        and waits in turn, so nothing more would come, and the event loop's next turn costs a tenth of the round trip.

        Raises:
            nats.errors.OutboundBufferLimitError: There is no connection.
        """
        if not self.is_connected:
            raise errors.OutboundBufferLimitError
        self.stats["out_msgs"] += len(frames)
        self._written += len(frames)
        self._write(b"".join(chain.from_iterable(frames)), now=now or (self._alone and self._written == 1))

    def _write(self, command: bytes, *, now: bool = False) -> None:
        self._pending.append(command)
        self._pending_data_size += len(command)
        if now:
            self._push()
        elif not self._pushing:
            self._pushing = True
            asyncio.get_running_loop().call_soon(self._push_later)

    def _push_later(self) -> None:
        self._pushing = False
        self._push()

    def _push(self) -> None:
        """Hand over what nats-py's own flusher, which is a task behind a queue, would hand over a little later."""
        if self._pending and self._transport is not None and self.is_connected:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            try:
                self._transport.writelines(pending)
            except RuntimeError:
                # uvloop's raises it once the connection is gone, which nats-py's reader hears of a little later;
                # asyncio's drops what is written then, which is as good: who waits for an answer is told.
                if not self._transport._io_writer.is_closing():  # type: ignore[attr-defined]  # noqa: SLF001
                    raise

    def ping(self) -> asyncio.Future[Any]:
        """Return a future that is done when the server has read all that was written so far; never cancel it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pongs.append(future)
        self._write(b"PING\r\n")
        return future

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._write(b"PING\r\n")

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS: nats-py does exactly if the server's greeting asks for it."""
        return bool(self._server_info.get("tls_required")) or bool(self.options.get("tls_handshake_first"))

    async def abandon(self) -> None:
        """Close at once: send nothing more, wait for nobody.

        nats-py's own `close` writes what is buffered and waits until the peer has taken it; on a connection that is
        gone it raises half-way, on a dead peer's it never ends.
        """
        self._pending.clear()
        self._pending_data_size = 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
        tasks: list[asyncio.Task[None] | None] = [s._wait_for_msgs_task for s in self._subs.values()]  # noqa: SLF001
        readers = [task for task in tasks if task is not None]
        with contextlib.suppress(errors.Error, OSError, TimeoutError):
            async with asyncio.timeout(2):
                await self.close()
        self._subs.clear()
        self._handlers.clear()
        for task in readers:
            task.cancel()
        if readers:
            await asyncio.wait(readers, timeout=2)


class Dialer:
    """Connects clients to the URL's servers.

    Args:
        url: The broker's URL.
        options: Its options.
        config: The bus's.
    """

    def __init__(self, url: BusURL, options: NatsOptions, config: AdapterConfig) -> None:
        self._url = url
        self._options = options
        self._config = config
        self._scheme = "tls" if options.wants_tls else "nats"
        hosts = url.hosts or (("localhost", None),)
        self.servers = [f"{self._scheme}://{f'[{h}]' if ':' in h else h}:{port or _PORT}" for h, port in hosts]

    def address(self, server: ParseResult) -> str:
        """Return the address of a server that a client has discovered."""
        return f"{self._scheme}://{server.netloc.rpartition('@')[2]}"

    async def dial(
        self,
        server: str,
        *,
        on_error: Callable[[NatsClient, Exception], None],
        on_lost: Callable[[NatsClient], None],
        on_lame_duck: Callable[[NatsClient], None],
    ) -> NatsClient:
        """Return a client connected to *server*.

        Raises:
            BrokerUnavailable: It cannot be reached.
            AccessDenied: It refused the credentials, or offers no TLS.
            ConfigError: It is too old, or the options cannot be used.
        """
        client = NatsClient()
        first: list[Exception] = []
        connected = False

        async def error(exc: Exception) -> None:
            if connected:
                on_error(client, exc)
            else:
                first.append(exc)

        credentials, tls = self._credentials(client), self._tls()
        try:
            await client.connect(
                servers=[server],
                name=f"{self._config.service} {self._config.instance}",
                error_cb=error,
                disconnected_cb=_calls(on_lost, client),
                closed_cb=_calls(on_lost, client),
                lame_duck_mode_cb=_calls(on_lame_duck, client),
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                reconnect_to_server_handler=_never,
                connect_timeout=max(1, round(self._config.connect_timeout / 2)),
                pending_size=-1,
                inbox_prefix=self._options.inbox,
                **credentials,
                **tls,
            )
            self._check(client)
        except (errors.Error, OSError, TimeoutError) as exc:
            await client.abandon()
            cause = first[0] if isinstance(exc, errors.NoServersError) and first else exc
            raise translate(cause, f"connecting to {self._url}") from exc
        except BaseException:
            await client.abandon()
            raise
        connected = True
        client.take_over()
        # From here on a broken connection must reach `on_lost`, which nats-py guarantees only while it believes
        # that it reconnects by itself; `_never` keeps it from doing so.
        client.options["allow_reconnect"] = True
        return client

    def _check(self, client: NatsClient) -> None:
        version = client.connected_server_version
        if (version.major, version.minor) < _OLDEST:
            raise ConfigError(f"{self._url} runs {version!r}, the adapter needs 2.10 or later")
        if self._options.wants_tls and not client.encrypted:
            raise AccessDenied(f"{self._url} offers no TLS, which was asked for")

    def _credentials(self, client: NatsClient) -> dict[str, Any]:
        options, url = self._options, self._url
        if options.creds:
            return {"user_credentials": _readable(options.creds, "creds")}
        if options.nkey:
            return {"nkeys_seed": _readable(options.nkey, "nkey")}
        secret = url.password
        token = options.token or (url.username if secret is None else None)

        def guarded(value: str) -> Callable[[], str]:
            def reveal() -> str:
                if options.wants_tls and not client.encrypted:  # never in clear text
                    raise errors.SecureConnWantedError
                return value

            return reveal

        if token is not None:
            return {"token": guarded(token)}
        if url.username is not None and secret is not None:
            return {"user": url.username, "password": guarded(secret)}
        return {}

    def _tls(self) -> dict[str, Any]:
        options = self._options
        if not options.wants_tls:
            return {}
        try:
            context = options.ssl_context()
        except OSError as exc:
            raise ConfigError(f"the TLS options of {self._url} cannot be used: {exc}") from exc
        hostname = {"tls_hostname": options.tls_hostname} if options.tls_hostname else {}
        return {"tls": context, "tls_handshake_first": options.tls_first, **hostname}


def _calls(function: Callable[[NatsClient], None], client: NatsClient) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        function(client)

    return call


def _never(pool: list[Server], info: dict[str, Any]) -> tuple[Server | None, float]:
    """Keep nats-py from reconnecting: the link does it with a client of its own."""
    del pool, info
    return None, 86_400.0


def _readable(path: str, option: str) -> str:
    try:
        Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(f"the file that {option}= names cannot be read: {exc.strerror}") from exc
    return path
