"""The URL's options."""

from __future__ import annotations

import re
from dataclasses import dataclass

from msgbus.adapter import BusURL, parse_options
from msgbus.errors import ConfigError

__all__ = ["AwsOptions", "Place", "read_options", "read_place"]

_REGION = re.compile(r"[a-z0-9-]{1,32}\Z")
_ACCOUNT = re.compile(r"\d{12}\Z")
_LARGE = re.compile(r"s3://[a-z0-9.-]{3,63}(/[A-Za-z0-9!_.*'()/-]*)?\Z")
_MOST = 1024 * 1024
_LEAST = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsOptions:
    """What an ``sqs://`` URL can say after its question mark.

    Attributes:
        endpoint: The URL of another implementation of the services (an emulator, a VPC endpoint), for all of them.
        wait: The longest a poll waits at SQS, in seconds from 1 to 20. It cannot be interrupted, so it is also how
            long a process may take to end; a longer one makes fewer requests while nothing comes.
        timeout: Seconds to wait for any other answer.
        max_message: The largest message in bytes, attributes included. Services and queues take 1 MiB where nobody
            has lowered it; the default is what they took before August 2025.
        retention: Seconds that queues made by msgbus keep a message, from a minute to 14 days.
        max_receive_count: After so many receives SQS itself moves a message to the dead letters: a net for consumers
            that die before msgbus can decide. It must be well above any policy's attempts.
        large: Where bodies go that do not fit, as ``s3://bucket/prefix``; without it they are refused.
        max_large: The largest body in bytes with ``large``; it is held in memory.
        kms: The KMS key (id, ARN or alias) for queues and topics that are made; without it SQS's own key encrypts.
        sns: Whether there is SNS. Without it there are no topics, and SNS is never asked.
    """

    endpoint: str = ""
    wait: int = 5
    timeout: float = 10.0
    max_message: int = 256 * 1024
    retention: int = 14 * 86_400
    max_receive_count: int = 1000
    large: str = ""
    max_large: int = 64 * 1024 * 1024
    kms: str = ""
    sns: bool = True

    def __post_init__(self) -> None:
        _within("wait", self.wait, 1, 20)
        _within("timeout", self.timeout, 0.1, 300)
        _within("max_message", self.max_message, _LEAST, _MOST)
        _within("retention", self.retention, 60, 14 * 86_400)
        _within("max_receive_count", self.max_receive_count, 1, 1000)
        if self.large and not _LARGE.match(self.large):
            raise ValueError(f"option 'large' takes s3://bucket/prefix, got {self.large!r}")


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"option {name!r} takes {least:g} to {most:g}, got {value:g}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the services are.

    Attributes:
        region: The AWS region.
        account: The account that owns queues and topics; empty for the caller's own.
    """

    region: str
    account: str = ""


def read_place(url: BusURL) -> str:
    """Return the URL's region.

    Raises:
        ConfigError: It has none, or has credentials.
    """
    if url.username is not None or url.password is not None:
        raise ConfigError(
            f"{url.scheme}:// takes no credentials: boto3 finds them in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY), the profile (AWS_PROFILE) or the machine's role"
        )
    region, port = url.hosts[0] if len(url.hosts) == 1 else ("", None)
    if port is not None or not _REGION.match(region):
        raise ConfigError(f"{url.scheme}:// takes a region, for example {url.scheme}://eu-central-1, got {str(url)!r}")
    return region


def read_options(url: BusURL) -> tuple[Place, AwsOptions]:
    """Return what the URL says.

    Raises:
        ConfigError: It has no region, or something in it does not fit; says what is accepted.
    """
    region = read_place(url)
    account = url.path.strip("/")
    if account and not _ACCOUNT.match(account):
        raise ConfigError(f"{url.scheme}://region/account takes an account of 12 digits, got {account!r}")
    return Place(region, account), parse_options(url, AwsOptions)
