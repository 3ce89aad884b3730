"""Claim checks: bodies that are too large for a message are put into S3, and the message says where.

The objects are not deleted: several groups may read one, and dead letters are replayed weeks later. A lifecycle rule
on the prefix does it, longer than the queues' retention.
"""

from __future__ import annotations

import json
import uuid

from botocore.exceptions import BotoCoreError, ClientError

from msgbus_aws._errors import code_of
from msgbus_aws._link import Link
from msgbus_aws._wire import S3, Body

__all__ = ["Claims"]


class Claims:
    """Puts bodies into S3 and fetches them.

    Args:
        link: The clients.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._bucket, _, prefix = link.options.large.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    async def put(self, body: bytes) -> Body:
        """Store *body*; return what is sent instead. Raises what boto3 raises."""
        key = f"{self._prefix}{uuid.uuid4().hex}"
        await self._link.send("s3", "put_object", Bucket=self._bucket, Key=key, Body=body)
        return Body(json.dumps({"bucket": self._bucket, "key": key, "size": len(body)}), S3)

    def fetch(self, claim: str) -> bytes:
        """Return the body that *claim* names; called in threads.

        Raises:
            LookupError: It will never be had: the object is gone, or is not where this bus may look.
            ClientError: S3 refused.
            BotoCoreError: S3 could not be reached.
        """
        if not self._bucket:
            raise LookupError(f"the body is in S3 ({claim:.200}), and the URL has no large=s3://…")
        try:
            where = json.loads(claim)
            bucket, key = str(where["bucket"]), str(where["key"])
        except (ValueError, KeyError, TypeError):
            raise LookupError(f"the claim check cannot be read: {claim:.200}") from None
        if bucket != self._bucket or not key.startswith(self._prefix):
            # Whoever may send messages must not be able to make us read any object that we may read.
            raise LookupError(f"the body is at s3://{bucket}/{key}, outside of {self._link.options.large}")
        try:
            answer = self._link.sync("s3", "get_object", Bucket=bucket, Key=key)
            limit = self._link.options.max_large
            if answer["ContentLength"] > limit:
                raise LookupError(
                    f"s3://{bucket}/{key} has {answer['ContentLength']} bytes, more than max_large={limit}"
                )
            content: bytes = answer["Body"].read()
        except (BotoCoreError, ClientError) as exc:
            if code_of(exc) in ("NoSuchKey", "404"):
                raise LookupError(f"s3://{bucket}/{key} is gone") from exc
            raise
        return content
