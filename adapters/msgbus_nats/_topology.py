"""Streams and consumers: created, verified, and mended when somebody deletes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from msgbus.adapter import Address, Kind, Provision, Source, Start, Topology
from msgbus.errors import BrokerUnavailable, TopologyError, UnsupportedFeature
from msgbus_nats._errors import CONSUMER_EXISTS, CONSUMER_NOT_FOUND, STREAM_EXISTS, STREAM_NOT_FOUND, ApiError
from msgbus_nats._link import Link
from msgbus_nats._names import Names, Place, Work
from msgbus_nats._options import NatsOptions

__all__ = ["Provisioner", "nanoseconds"]

SCHEDULES_SINCE = (2, 12)
"""Delayed publishing: the server's message schedules."""
PINNING_SINCE = (2, 11)
"""Order of keys across processes: pinned clients."""
PIN_GROUP = "key"
_PIN_TIMEOUT = 15.0
"""Seconds after which a partition's silent owner loses it. Shorter would cost owners their partition in a pause of
the process, longer lets messages wait when one dies."""

_LEFT_ALONE = 3600.0
"""Seconds after which the server removes a consumer of dead letters that was made although nothing may be declared."""


def nanoseconds(seconds: float) -> int:
    """Return *seconds* as JetStream wants durations."""
    return int(seconds * 1_000_000_000)


class Provisioner:
    """Declares what is needed.

    Args:
        link: The connection.
        names: Where things are.
        options: The URL's.
        provision: Whether to create, to verify or to skip.
    """

    def __init__(self, link: Link, names: Names, options: NatsOptions, provision: Provision) -> None:
        self._link = link
        self._names = names
        self._options = options
        self._provision = provision
        self._floors: dict[Work, int] = {}

    async def declare(self, topology: Topology) -> None:
        """Create or verify everything that *topology* names."""
        addresses = dict.fromkeys([*topology.addresses, *(s.address for s in topology.sources)])
        if self._provision is Provision.SKIP:
            for address in addresses:
                self._names.place(address)
            return
        places = {place.stream: place for place in map(self._names.place, addresses) if place.stream}
        for place in places.values():
            await self._ensure_stream(place)
        sources = [s for s in topology.sources if s.address.kind is not Kind.REPLY]
        if sources:
            await self.ensure_dead()
        for source in sources:
            if source.dead or self._names.place(source.address).stream:
                for work in self._names.consumers(source):
                    await self._ensure_consumer(source, work)

    async def ensure(self, source: Source, work: Work) -> None:
        """Mend what a consumer needs: after a server lost its data, or somebody deleted something."""
        if source.dead:
            await self.ensure_dead()
        else:
            await self._ensure_stream(self._names.place(source.address))
        await self._ensure_consumer(source, work)

    async def ensure_dead(self) -> None:
        """See to the stream of dead letters."""
        if self._provision is not Provision.SKIP:
            config = self._stream(self._names.dead, [f"{self._names.prefix}.dead.>"], "workqueue")
            await self._ensure(config, create=True)

    # -- streams ------------------------------------------------------------------------------------------------

    async def _ensure_stream(self, place: Place) -> None:
        if place.shared:
            prefix = self._names.prefix
            words = ("topic", "parted", "direct", "later.topic")
            config = self._stream(place.stream, [f"{prefix}.{word}.>" for word in words], "limits")
            config["max_age"] = nanoseconds(self._options.retention)
        else:
            retention = "limits" if place.address.kind is Kind.TOPIC else "workqueue"
            subjects = [place.wildcard] + ([place.later.replace("{}", "*")] if place.later else [])
            config = self._stream(place.stream, subjects, retention)
        await self._ensure(config, create=place.ours)

    def _stream(self, name: str, subjects: list[str], retention: str) -> dict[str, Any]:
        config: dict[str, Any] = {
            "name": name,
            "subjects": subjects,
            "retention": retention,
            "storage": self._options.storage,
            "max_age": 0,
        }
        if self._options.replicas is not None:
            config["num_replicas"] = self._options.replicas
        if self._link.version >= SCHEDULES_SINCE and any(".later." in subject for subject in subjects):
            config["allow_msg_schedules"] = True
        return config

    async def _ensure(self, config: dict[str, Any], *, create: bool) -> None:
        name = config["name"]
        existing = await self._info(f"STREAM.INFO.{name}", STREAM_NOT_FOUND)
        if existing is None and create and self._provision is Provision.CREATE:
            window = self._options.dedupe_window
            if config["max_age"]:
                window = min(window, config["max_age"] / 1e9)
            try:
                await self._link.call(
                    f"STREAM.CREATE.{name}",
                    {"num_replicas": 1, "allow_direct": True, **config, "duplicate_window": nanoseconds(window)},
                )
            except ApiError as exc:
                if exc.err_code != STREAM_EXISTS:
                    raise TopologyError(f"stream {name!r} cannot be created: {exc.description}") from exc
                existing = await self._info(f"STREAM.INFO.{name}", STREAM_NOT_FOUND)
            else:
                return
        if existing is None:
            raise TopologyError(f"stream {name!r} does not exist (subjects {', '.join(config['subjects'])})")
        drift = _stream_drift(existing["config"], config, ours=create)
        if drift:
            raise TopologyError(f"stream {name!r} differs from what was declared: {'; '.join(drift)}")

    # -- consumers ----------------------------------------------------------------------------------------------

    async def _ensure_consumer(self, source: Source, work: Work) -> None:
        config = self._consumer(source, work)
        joined = not source.dead and not self._names.place(source.address).ours
        if await self._verify(work, config, joined=joined):
            return
        if source.dead and self._provision is not Provision.CREATE:
            # Nobody provides for the moment in which somebody replays dead letters, so this is no topology.
            config |= {"inactive_threshold": nanoseconds(_LEFT_ALONE)}
        elif self._provision is not Provision.CREATE or joined:
            raise TopologyError(f"stream {work.stream!r} has no consumer {work.name!r}")
        if work in self._floors and config["deliver_policy"] == "new":
            # Somebody deleted it: go on where it was, or a little before.
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self._floors[work] + 1}
        try:
            await self._create_consumer(work, config)
        except ApiError as exc:
            if exc.err_code not in CONSUMER_EXISTS or not await self._verify(work, config, joined=joined):
                raise TopologyError(f"consumer {work.name!r} on {work.stream!r}: {exc.description}") from exc

    async def _verify(self, work: Work, config: dict[str, Any], *, joined: bool) -> bool:
        existing = await self._info(f"CONSUMER.INFO.{work.stream}.{work.name}", CONSUMER_NOT_FOUND)
        if existing is None:
            return False
        drift = _consumer_drift(existing["config"], config, joined=joined)
        if drift:
            raise TopologyError(f"consumer {work.name!r} on stream {work.stream!r} differs: {'; '.join(drift)}")
        return True

    def _consumer(self, source: Source, work: Work) -> dict[str, Any]:
        log = source.address.kind is Kind.TOPIC and not source.dead
        config: dict[str, Any] = {
            "name": work.name,
            "durable_name": work.name,
            "ack_policy": "explicit",
            "deliver_policy": "new" if log else "all",
            "filter_subjects": list(work.filters),
            "ack_wait": nanoseconds(30),
            "max_deliver": -1,
            # Without partitions a consumer's prefetch bounds what it holds, and messages that wait for a retry must
            # not count; the default of 1,000 would stop the whole queue once so many wait.
            "max_ack_pending": -1,
        }
        if work.parted and self._link.version >= PINNING_SINCE:
            config |= {
                "priority_policy": "pinned_client",
                "priority_groups": [PIN_GROUP],
                "priority_timeout": nanoseconds(_PIN_TIMEOUT),
            }
        return config

    async def _create_consumer(self, work: Work, config: dict[str, Any]) -> None:
        if self._link.version < (2, 11) and len(config["filter_subjects"]) == 1:
            config = {**config, "filter_subject": config["filter_subjects"][0], "filter_subjects": []}
        await self._link.call(
            f"CONSUMER.CREATE.{work.stream}.{work.name}",
            {"stream_name": work.stream, "config": config, "action": "create"},
        )

    async def reposition(self, source: Source, start: Start) -> None:
        """Make a topic's group begin again at *start*."""
        if source.dead or source.address.kind is not Kind.TOPIC:
            raise UnsupportedFeature("nats", f"replay of {source}", "only topics keep what was consumed")
        for work in self._names.consumers(source):
            await self.delete_consumer(work)
            try:
                await self._create_consumer(work, self._consumer(source, work) | _deliver_from(start))
            except ApiError as exc:
                if exc.err_code not in CONSUMER_EXISTS:
                    raise TopologyError(f"{source} cannot start at {start!r}: {exc.description}") from exc

    async def delete_consumer(self, work: Work) -> None:
        """Delete a consumer if it exists."""
        self._floors.pop(work, None)
        await self._undo(f"CONSUMER.DELETE.{work.stream}.{work.name}")

    async def _undo(self, endpoint: str, body: dict[str, Any] | None = None) -> None:
        try:
            await self._link.call(endpoint, body)
        except ApiError as exc:
            if exc.err_code not in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
                raise

    async def remove(self, source: Source) -> None:
        """Remove a source with its messages and dead letters."""
        place = self._names.place(source.address)
        if place.stream and not place.ours:
            raise TopologyError(f"stream {place.stream!r} is joined, not ours: remove {source} with the tools of NATS")
        (graves,) = self._names.consumers(source.dead_letters)
        await self.delete_consumer(graves)
        doomed = [(graves.stream, graves.filters[0])]
        if place.stream and source.address.kind is not Kind.TOPIC:
            await self._undo(f"STREAM.DELETE.{place.stream}")
        elif place.stream:
            for work in self._names.consumers(source):
                await self.delete_consumer(work)
                doomed.append((work.stream, work.filters[0]))
        for stream, subject in doomed:
            await self._undo(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def fit(self, work: Work, lease: float, pending: int) -> float:
        """Fit a consumer to a subscriber's lease and prefetch; return its ``ack_wait`` from now on.

        It is everybody's who shares the consumer, and messages in hand would wait for the new time, so it is only
        changed while nobody uses it. Otherwise the subscription makes do with what there is.
        """
        info = await self.info(work)
        config = info["config"]
        wanted = nanoseconds(lease)
        idle = not info.get("num_waiting") and not info.get("num_ack_pending")
        if self._provision is not Provision.CREATE or not idle:
            wanted = config["ack_wait"]
        changed = {"ack_wait": wanted} | ({"max_ack_pending": pending} if work.parted else {})
        if self._provision is Provision.CREATE and any(config.get(name) != value for name, value in changed.items()):
            await self._link.call(
                f"CONSUMER.CREATE.{work.stream}.{work.name}",
                {"stream_name": work.stream, "config": {**config, **changed}, "action": "update"},
            )
        return wanted / 1e9

    async def unpin(self, work: Work) -> None:
        """Let somebody else have a partition."""
        await self._undo(f"CONSUMER.UNPIN.{work.stream}.{work.name}", {"group": PIN_GROUP})

    async def info(self, work: Work) -> dict[str, Any]:
        """Return the server's account of a consumer, and remember how far it is."""
        try:
            info = await self._link.call(f"CONSUMER.INFO.{work.stream}.{work.name}")
        except ApiError as exc:
            if exc.err_code in (CONSUMER_NOT_FOUND, STREAM_NOT_FOUND):
                raise TopologyError(f"consumer {work.name!r} on stream {work.stream!r}: {exc.description}") from exc
            raise
        self._floors[work] = int(info["ack_floor"]["stream_seq"])
        return info

    async def _info(self, endpoint: str, missing: int) -> dict[str, Any] | None:
        try:
            return await self._link.call(endpoint)
        except ApiError as exc:
            if exc.err_code == missing:
                return None
            if exc.temporary:
                raise BrokerUnavailable(str(exc)) from exc
            raise

    async def exists(self, address: Address) -> bool:
        """Tell whether the stream of *address* exists; raises `BrokerUnavailable` if nobody can say."""
        place = self._names.place(address)
        return await self._info(f"STREAM.INFO.{place.stream}", STREAM_NOT_FOUND) is not None


def _stream_drift(existing: dict[str, Any], wanted: dict[str, Any], *, ours: bool) -> list[str]:
    """Name what differs; of a stream that is merely joined only the subjects matter."""
    have = existing.get("subjects") or []
    missing = [s for s in wanted["subjects"] if not any(_covers(subject, s) for subject in have)]
    drift = [f"it takes {', '.join(have) or 'nothing'} but not {', '.join(missing)}"] if missing else []
    if ours:
        for name, value in wanted.items():
            if name not in ("name", "subjects") and existing.get(name) != value:
                drift.append(f"{name} is {existing.get(name)!r}, declared {value!r}")
    return drift


def _consumer_drift(existing: dict[str, Any], wanted: dict[str, Any], *, joined: bool) -> list[str]:
    """Name what differs; whoever made a consumer that is merely joined has a reason for its limits."""
    have = existing.get("filter_subjects") or [existing.get("filter_subject", "")]
    drift = []
    if sorted(have) != sorted(wanted["filter_subjects"]) and not (joined and have == [""]):
        drift.append(f"it takes {', '.join(have)}, declared {', '.join(wanted['filter_subjects'])}")
    if existing.get("deliver_subject"):
        drift.append("it is a push consumer, declared is a pull consumer")
    return drift + [
        f"{name} is {existing.get(name)!r}, declared {wanted.get(name)!r}"
        for name in (("ack_policy",) if joined else ("ack_policy", "max_deliver", "priority_policy"))
        if existing.get(name) != wanted.get(name)
    ]


def _covers(pattern: str, subject: str) -> bool:
    """Tell whether every subject that matches *subject* matches *pattern*, too."""
    return _covers_words(pattern.split("."), subject.split("."))


def _covers_words(pattern: list[str], subject: list[str]) -> bool:
    for i, word in enumerate(pattern):
        if word == ">":
            return len(subject) > i
        if i >= len(subject) or subject[i] == ">" or word not in ("*", subject[i]):
            return False
    return len(pattern) == len(subject)


def _deliver_from(start: Start) -> dict[str, Any]:
    if isinstance(start, int):
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, start)}
    if isinstance(start, datetime):
        at = start.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return {"deliver_policy": "by_start_time", "opt_start_time": at}
    return {"deliver_policy": {"earliest": "all", "latest": "new"}[start]}
