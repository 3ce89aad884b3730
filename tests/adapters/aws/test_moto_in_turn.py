"""What keeps moto from handing one message to two: one request at a time, and long polls that keep nobody out."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

from scripts.brokers.moto_in_turn import InTurn


class Moto:
    """An application that notices who is inside, and has messages as soon as somebody has sent one."""

    def __init__(self):
        self.inside = self.most = self.polls = 0
        self.polled = threading.Event()
        self.sent = False

    def __call__(self, environ, start_response):
        self.inside += 1
        self.most = max(self.most, self.inside)
        threading.Event().wait(0.01)  # others have time to come in
        self.inside -= 1
        start_response("200 OK", [])
        if environ.get("HTTP_X_AMZ_TARGET") != "AmazonSQS.ReceiveMessage":
            self.sent = True
            return [b"{}"]
        assert json.load(environ["wsgi.input"]) == {"QueueUrl": "q", "WaitTimeSeconds": 0}
        self.polls += 1
        self.polled.set()
        return [b'{"Messages": []}' if self.sent else b"{}"]


def call(application, target="", body=b""):
    environ = {"HTTP_X_AMZ_TARGET": target, "wsgi.input": BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    started = []
    answer = b"".join(application(environ, lambda *given: started.append(given)))
    assert started == [("200 OK", [])]
    return answer


def receive(application, wait):
    body = json.dumps({"QueueUrl": "q", "WaitTimeSeconds": wait}).encode()
    return call(application, "AmazonSQS.ReceiveMessage", body)


def test_one_request_at_a_time():
    moto = Moto()
    application = InTurn(moto)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: call(application), range(16))) == [b"{}"] * 16
    assert moto.most == 1


def test_a_long_poll_keeps_nobody_out():
    moto = Moto()
    application = InTurn(moto)
    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(receive, application, 30)
        assert moto.polled.wait(10)
        call(application)
        assert poll.result(timeout=10) == b'{"Messages": []}'
    assert moto.most == 1


def test_a_long_poll_ends():
    moto = Moto()
    assert receive(InTurn(moto), 0.2) == b"{}"
    assert moto.polls > 1


def test_a_short_poll_asks_once():
    moto = Moto()
    assert receive(InTurn(moto), 0) == b"{}"
    assert moto.polls == 1
