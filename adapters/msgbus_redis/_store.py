"""The idempotency store: one string per key, every call one Lua script."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ResponseError

from msgbus.errors import ClaimLost, ClosedError, StoreError
from msgbus.store import (
    AdapterConfig,
    BusURL,
    Claim,
    Completion,
    Done,
    Granted,
    InProgress,
    Mismatch,
    Store,
    Verdict,
    parse_options,
)
from msgbus_redis._errors import FAILURES, refused, unavailable
from msgbus_redis._options import Options, address
from msgbus_redis._scripts import CLAIM, COMPLETE, EXTEND, GRANTED, IN_PROGRESS, MISMATCH, RELEASE

__all__ = ["RedisStore"]

_log = logging.getLogger("msgbus")


class RedisStore(Store):
    """Idempotency records in a Redis server."""

    name: ClassVar[str] = "redis"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = parse_options(url, Options)
        self._address = address(url, self._options)
        self._client: Redis | None = None
        self._scripts: dict[str, Any] = {}
        self._closed = False

    @property
    def raw(self) -> Redis | None:
        """The client; None while the store is not open."""
        return self._client

    async def open(self) -> None:
        """Connect, and warn if the server throws records away."""
        if self._closed:
            raise ClosedError("the redis store is closed")
        if self._client is not None:
            return
        client = Redis(
            **self._address,
            socket_timeout=self._options.timeout,
            socket_connect_timeout=min(self._options.timeout, self.config.connect_timeout),
            # A connection that the server closed while it was idle is noticed by the next call, which tries once more.
            retry=Retry(NoBackoff(), 1, supported_errors=(Disconnected,)),
            client_name=re.sub(r"[^!-~]", "-", self.config.service),
        )
        try:
            await client.ping()
            await self._warn_of_eviction(client)
        except FAILURES as exc:
            await client.aclose()
            raise refused(exc, self.url) from exc
        except BaseException:
            await client.aclose()
            raise
        self._scripts = {text: client.register_script(text) for text in (CLAIM, EXTEND, COMPLETE, RELEASE)}
        self._client = client

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Verdict]:
        """Claim keys in one script, one after the other."""
        values = [value for c in claims for value in (_bytes(c.fingerprint), _bytes(c.owner), _milliseconds(c.lease))]
        return [_verdict(answer) for answer in await self._run(CLAIM, claims, values)]

    async def extend(self, claims: Sequence[Claim]) -> Sequence[StoreError | None]:
        """Extend claims in one script."""
        values = [value for c in claims for value in (_bytes(c.fingerprint), _bytes(c.owner), _milliseconds(c.lease))]
        return _unless_lost(claims, await self._run(EXTEND, claims, values))

    async def complete(self, completions: Sequence[Completion]) -> Sequence[StoreError | None]:
        """Complete claims in one script."""
        claims = [completion.claim for completion in completions]
        values = [
            value
            for done in completions
            for value in (
                _bytes(done.claim.fingerprint),
                _bytes(done.claim.owner),
                _milliseconds(done.ttl),
                b"D" if done.reply is None else b"R",
                done.reply or b"",
            )
        ]
        return _unless_lost(claims, await self._run(COMPLETE, claims, values))

    async def release(self, claims: Sequence[Claim]) -> None:
        """Release claims in one script."""
        values = [value for c in claims for value in (_bytes(c.fingerprint), _bytes(c.owner))]
        await self._run(RELEASE, claims, values)

    async def purge(self, limit: int) -> int:
        """Do nothing: Redis deletes what has expired."""
        return 0

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _run(self, script: str, claims: Sequence[Claim], values: list[Any]) -> Sequence[Any]:
        if self._client is None:
            raise ClosedError(f"the redis store is {'closed' if self._closed else 'not open'}")
        if not claims:
            return ()
        try:
            found = await self._scripts[script](keys=[self._key(claim) for claim in claims], args=values)
        except FAILURES as exc:
            raise unavailable(exc, self.url) from exc
        return found or ()

    def _key(self, claim: Claim) -> bytes:
        """Return the record's key. The scope's length keeps scope and key from running into each other."""
        return _bytes(f"{self._options.prefix}:{len(claim.scope)}:{claim.scope}:{claim.key}")

    async def _warn_of_eviction(self, client: Redis) -> None:
        try:
            found = await client.config_get("maxmemory*")
        except ResponseError:
            return  # managed servers do not say
        policy = found.get("maxmemory-policy", "noeviction")
        if policy != "noeviction" and found.get("maxmemory", "0") != "0":
            _log.warning("%s may forget what was handled: its maxmemory-policy is %s, not noeviction", self.url, policy)


def _verdict(answer: Sequence[Any]) -> Verdict:
    match answer:
        case [code] if code == GRANTED:
            return Granted()
        case [code, remaining] if code == IN_PROGRESS:
            return InProgress(max(0.001, remaining / 1_000))
        case [code] if code == MISMATCH:
            return Mismatch()
        case [_, reply]:
            return Done(bytes(reply))
        case _:
            return Done(None)


def _unless_lost(claims: Sequence[Claim], answers: Sequence[int]) -> list[StoreError | None]:
    return [
        None if kept else ClaimLost(f"the claim on key {claim.key!r} in {claim.scope!r} is another worker's by now")
        for claim, kept in zip(claims, answers, strict=True)
    ]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _milliseconds(seconds: float) -> int:
    """Return a time to live; the shortest one that Redis knows is a millisecond."""
    return max(1, round(seconds * 1_000))
