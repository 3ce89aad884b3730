"""The idempotency store in DynamoDB: one item per key, written under conditions, expired by the table itself.

DynamoDB has no clock to ask, so leases are measured by the clocks of the machines: those must be in step (NTP), and
leases should be much longer than they may differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from msgbus.errors import (
    AccessDenied,
    BrokerUnavailable,
    ClaimLost,
    ClosedError,
    ConfigError,
    StoreError,
    StoreUnavailable,
    TopologyError,
)
from msgbus.store import (
    AdapterConfig,
    BusURL,
    Claim,
    Completion,
    Done,
    Granted,
    InProgress,
    Mismatch,
    Provision,
    Store,
    Verdict,
    parse_options,
)
from msgbus_aws._errors import code_of, translate
from msgbus_aws._link import make_clients
from msgbus_aws._options import Place, read_place

__all__ = ["DynamoDBStore"]

_log = logging.getLogger("msgbus.aws")
_TABLE = re.compile(r"[A-Za-z0-9_.-]{3,255}\Z")
_THREADS = 8
"""Calls at once. DynamoDB answers in milliseconds, and a thread is busy for one of them."""
_POLL = 0.2
_KEY_MOST = 2048
"""Bytes of a partition key that DynamoDB takes."""
_TAKE = (
    "attribute_not_exists(#key) OR #until <= :now OR (#owner = :owner AND #done = :no AND #fingerprint = :fingerprint)"
)
_COMPLETE = "attribute_not_exists(#key) OR (#owner = :owner AND #done = :no)"
_OURS = "#owner = :owner AND #done = :no"
_EXTEND = f"{_OURS} AND #until > :now"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamoDBOptions:
    """What a ``dynamodb://`` URL can say after its question mark.

    Attributes:
        endpoint: The URL of another implementation of the service.
        timeout: Seconds to wait for an answer.
    """

    endpoint: str = ""
    timeout: float = 5.0


class DynamoDBStore(Store):
    """Idempotency records in a DynamoDB table: ``dynamodb://region/table``."""

    name: ClassVar[str] = "dynamodb"

    def __init__(self, url: BusURL, config: AdapterConfig) -> None:
        super().__init__(url, config)
        self._options = parse_options(url, DynamoDBOptions)
        self._place = Place(read_place(url))
        self._table = url.path.strip("/") or "msgbus"
        if not _TABLE.match(self._table):
            raise ConfigError(f"dynamodb://region/table takes a table's name, got {self._table!r}")
        self._pool = ThreadPoolExecutor(_THREADS, "msgbus-dynamodb")
        self._client: Any = None
        self._closed = False

    @property
    def raw(self) -> Any:
        """The boto3 DynamoDB client."""
        return self._client

    # -- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; make the table if it is missing and may be made."""
        if self._closed:
            raise ClosedError("the dynamodb store is closed")
        if self._client is not None:
            return
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                self._client = await asyncio.wrap_future(self._pool.submit(self._connect))
                await self._prepare()
        except TimeoutError as exc:
            raise StoreUnavailable(f"{self.url} did not answer in {self.config.connect_timeout:g} s") from exc

    def _connect(self) -> Any:
        timeouts = {"read_timeout": self._options.timeout, "max_pool_connections": _THREADS}
        endpoint = self._options.endpoint
        return make_clients({"dynamodb": timeouts}, self._place, endpoint, self.config.service)["dynamodb"]

    async def _prepare(self) -> None:
        """See to the table, as the configuration says."""
        if self.config.provision is Provision.SKIP:
            return
        status = await self._status()
        if status is None:
            if self.config.provision is Provision.VERIFY:
                raise TopologyError(f"the DynamoDB table {self._table!r} does not exist")
            await self._create()
        while status != "ACTIVE":
            await self.config.clock.sleep(_POLL)
            status = await self._status()

    async def _status(self) -> str | None:
        try:
            answer = await self._call("describe_table")
        except (BotoCoreError, ClientError) as exc:
            if code_of(exc) == "ResourceNotFoundException":
                return None
            raise self._refusal(exc) from exc
        return str(answer["Table"]["TableStatus"])

    async def _create(self) -> None:
        try:
            await self._call(
                "create_table",
                AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                BillingMode="PAY_PER_REQUEST",
            )
            while await self._status() != "ACTIVE":
                await self.config.clock.sleep(_POLL)
            await self._call(
                "update_time_to_live", TimeToLiveSpecification={"Enabled": True, "AttributeName": "expires"}
            )
        except (BotoCoreError, ClientError) as exc:
            # Somebody else made it at the same moment.
            if code_of(exc) not in ("ResourceInUseException", "ValidationException"):
                raise self._refusal(exc) from exc

    async def aclose(self) -> None:
        """Close the client and end the threads."""
        if self._closed:
            return
        self._closed = True
        client = self._client
        if client is not None:
            self._pool.submit(client.close)
        self._pool.shutdown(wait=False)

    # -- the contract -------------------------------------------------------------------------------------------

    async def claim(self, claims: Sequence[Claim]) -> Sequence[Verdict]:
        """Claim keys, each by one conditional write; of several claims for one key the first goes first."""
        turns = {_key(claim): asyncio.Lock() for claim in claims}

        async def take(claim: Claim) -> Verdict:
            async with turns[_key(claim)]:
                return await self._claim(claim)

        return await self._each(take, claims)

    async def extend(self, claims: Sequence[Claim]) -> Sequence[StoreError | None]:
        """Extend claims, each by one conditional write."""
        return await self._each(self._extend, claims)

    async def complete(self, completions: Sequence[Completion]) -> Sequence[StoreError | None]:
        """Complete claims, each by one conditional write."""
        return await self._each(self._complete, completions)

    async def release(self, claims: Sequence[Claim]) -> None:
        """Release claims, each by one conditional delete."""
        await self._each(self._release, claims)

    async def purge(self, limit: int) -> int:
        """Return 0: the table deletes expired items by itself."""
        del limit
        return 0

    async def _claim(self, claim: Claim) -> Verdict:
        now = self.config.clock.now()
        item = _item(claim, now + claim.lease, done=False)
        values = {**_values(claim, now), ":fingerprint": _text(claim.fingerprint)}
        found = await self._write(
            "put_item", Item=item, condition=_TAKE, values=values, ReturnValuesOnConditionCheckFailure="ALL_OLD"
        )
        if found is None:
            return Granted()
        if found["fingerprint"]["S"] != claim.fingerprint:
            return Mismatch()
        if found["done"]["BOOL"]:
            return Done(bytes(found["reply"]["B"]) if "reply" in found else None)
        return InProgress(max(0.0, float(found["until"]["N"]) - now))

    async def _extend(self, claim: Claim) -> StoreError | None:
        now = self.config.clock.now()
        until = now + claim.lease
        lost = await self._write(
            "update_item",
            Key={"key": _text(_key(claim))},
            UpdateExpression="SET #until = :until, #expires = :expires",
            condition=_EXTEND,
            values={**_values(claim, now), ":until": _number(until), ":expires": _number(math.ceil(until))},
        )
        return None if lost is None else _lost(claim)

    async def _complete(self, completion: Completion) -> StoreError | None:
        claim, now = completion.claim, self.config.clock.now()
        item = _item(claim, now + completion.ttl, done=True)
        if completion.reply is not None:
            item["reply"] = {"B": completion.reply}
        lost = await self._write("put_item", Item=item, condition=_COMPLETE, values=_values(claim, now))
        return None if lost is None else _lost(claim)

    async def _release(self, claim: Claim) -> None:
        values = _values(claim, self.config.clock.now())
        await self._write("delete_item", Key={"key": _text(_key(claim))}, condition=_OURS, values=values)

    # -- calls --------------------------------------------------------------------------------------------------

    async def _each(self, function: Callable[[T], Awaitable[R]], items: Sequence[T]) -> list[R]:
        """Call *function* for all items at once; when one fails the others still take effect."""
        self._check_open()
        tasks = [asyncio.ensure_future(function(item)) for item in items]
        everything = asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.shield(everything)
        except asyncio.CancelledError:
            # A write that is on its way cannot be called back; whoever goes on must not be overtaken by it.
            await everything
            raise
        return [task.result() for task in tasks]

    async def _write(
        self, method: str, *, condition: str, values: dict[str, Any], **arguments: Any
    ) -> dict[str, Any] | None:
        """Write under a condition; return None, or the item that stood against it."""
        text = " ".join([condition, str(arguments.get("UpdateExpression", ""))])
        names = {f"#{name}": name for name in re.findall(r"#(\w+)", text)}
        wanted = set(re.findall(r":\w+", text))
        try:
            await self._call(
                method,
                ConditionExpression=condition,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues={name: value for name, value in values.items() if name in wanted},
                **arguments,
            )
        except (BotoCoreError, ClientError) as exc:
            if isinstance(exc, ClientError) and code_of(exc) == "ConditionalCheckFailedException":
                return dict(exc.response.get("Item", {}))
            raise self._error(exc) from exc
        return None

    async def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._check_open()
        function = getattr(self._client, method)
        answer: dict[str, Any] = await asyncio.wrap_future(
            self._pool.submit(function, TableName=self._table, **arguments)
        )
        return answer

    def _check_open(self) -> None:
        if self._closed or self._client is None:
            raise ClosedError(f"the dynamodb store is {'closed' if self._closed else 'not open'}")

    def _error(self, exc: Exception) -> StoreError:
        error = translate(exc, "dynamodb", f"table {self._table!r}")
        return (StoreUnavailable if isinstance(error, BrokerUnavailable) else StoreError)(str(error))

    def _refusal(self, exc: Exception) -> StoreError | AccessDenied:
        """Return the error of opening: there wrong credentials are told from everything else."""
        error = translate(exc, "dynamodb", f"table {self._table!r}")
        return error if isinstance(error, AccessDenied) else self._error(exc)


def _key(claim: Claim) -> str:
    key = f"{claim.scope}|{claim.key}"
    if len(key.encode()) <= _KEY_MOST:
        return key
    return hashlib.sha256(key.encode()).hexdigest()


def _item(claim: Claim, until: float, *, done: bool) -> dict[str, Any]:
    return {
        "key": _text(_key(claim)),
        "owner": _text(claim.owner),
        "fingerprint": _text(claim.fingerprint),
        "done": {"BOOL": done},
        "until": _number(until),
        "expires": _number(math.ceil(until)),  # the table's time to live knows whole seconds only
    }


def _values(claim: Claim, now: float) -> dict[str, Any]:
    return {":now": _number(now), ":owner": _text(claim.owner), ":no": {"BOOL": False}}


def _text(value: str) -> dict[str, str]:
    return {"S": value}


def _number(value: float) -> dict[str, str]:
    return {"N": f"{value:.6f}" if isinstance(value, float) else str(value)}


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(f"the claim on key {claim.key!r} in {claim.scope!r} is another worker's by now")
