"""moto's server, whose requests take turns: ``python moto_in_turn.py HOST PORT``.

moto has no lock around its queues and hands one message to two that ask at the same moment, which SQS hardly ever does.
Here each request has moto to itself. A long poll, which would keep the others out, is made of short ones.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

_PAUSE = 0.05
"""Seconds between two looks of a long poll."""


class _Head:
    """Keeps what an application says before its answer."""

    given: tuple[Any, ...] = ()

    def __call__(self, *given: Any) -> None:
        self.given = given


class InTurn:
    """A WSGI application around moto's."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """Answer a request."""
        if environ.get("HTTP_X_AMZ_TARGET") == "AmazonSQS.ReceiveMessage":
            return self._receive(environ, start_response)
        return self._once(environ, start_response)

    def _once(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        with self._turn:
            return list(self._application(environ, start_response))

    def _receive(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        asked = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        until = time.monotonic() + asked.pop("WaitTimeSeconds", 0)
        short = json.dumps({**asked, "WaitTimeSeconds": 0}).encode()  # said, lest the queue's own default counts
        while True:
            head = _Head()
            poll = {**environ, "wsgi.input": BytesIO(short), "CONTENT_LENGTH": str(len(short))}
            answer = b"".join(self._once(poll, head))
            if b'"Messages"' in answer or not head.given[0].startswith("200") or time.monotonic() >= until:
                start_response(*head.given)
                return [answer]
            time.sleep(_PAUSE)


def main() -> None:
    """Serve until killed."""
    from moto.moto_server import werkzeug_app as moto  # noqa: PLC0415 - not everybody who imports this file has it
    from werkzeug.serving import run_simple  # noqa: PLC0415

    host, port = sys.argv[1:]
    application = InTurn(moto.DomainDispatcherApplication(moto.create_backend_app))
    run_simple(host, int(port), application, threaded=True, request_handler=moto.MotoRequestHandler)


if __name__ == "__main__":
    main()
