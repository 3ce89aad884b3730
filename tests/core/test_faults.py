"""FaultProxy breaks real connections as it says it does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import socketserver
import subprocess
import sys
import threading
import time

import pytest

from msgbus.testing.faults import FaultProxy

PATIENCE = 10.0  # seconds until something that should happen is given up on
QUIET = 0.3  # seconds in which something that must not happen has its chance


class EchoServer:
    """A broker's stand-in on a real socket: sends back what it gets and remembers how its connections ended."""

    def __init__(self):
        self.ends = []
        self.received = b""
        echo = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                try:
                    while data := self.request.recv(65536):
                        echo.received += data
                        self.request.sendall(data)
                    echo.ends.append("eof")
                except ConnectionError:
                    echo.ends.append("reset")

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def echo():
    server = EchoServer()
    yield server
    server.close()


@pytest.fixture
def proxy(echo):
    with FaultProxy("127.0.0.1", echo.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy):
    """Connections through the proxy, closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE))


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def ask(connection, data=b"ping"):
    connection.sendall(data)
    return read(connection, len(data))


def read(connection, size):
    data = b""
    while len(data) < size:
        piece = connection.recv(65536)
        if not piece:
            break
        data += piece
    return data


def silent(connection):
    connection.settimeout(QUIET)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(PATIENCE)
    return False


def test_passes_bytes_both_ways_and_counts_them(proxy, connect):
    body = bytes(range(256)) * 8192  # 2 MiB: more than all the buffers between the ends
    connection = connect()
    received = bytearray()
    reader = threading.Thread(target=lambda: received.extend(read(connection, len(body))))
    reader.start()
    connection.sendall(body)
    reader.join(PATIENCE)

    assert received == body
    # What is counted was passed on: the client may have it a moment before.
    until(lambda: (proxy.counters.to_broker, proxy.counters.to_client) == (len(body), len(body)))
    assert (proxy.counters.accepted, proxy.connections) == (1, 1)


def test_passes_the_end_of_one_direction_and_keeps_the_other(proxy, echo, connect):
    connection = connect()
    connection.sendall(b"last words")
    connection.shutdown(socket.SHUT_WR)

    assert read(connection, 100) == b"last words"
    until(lambda: proxy.connections == 0)
    assert echo.ends == ["eof"]


def test_cut_resets_connections_and_refuses_new_ones_until_healed(proxy, echo, connect):
    connection = connect()
    ask(connection)
    proxy.cut()

    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect()
    until(lambda: echo.ends == ["reset"])
    assert proxy.counters.resets == 1

    proxy.heal()
    assert ask(connect()) == b"ping"


def test_cut_leaks_no_connection_that_comes_in_meanwhile(echo, proxy):
    over = threading.Event()

    def dial():
        while not over.is_set():
            with contextlib.suppress(OSError), socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE):
                pass

    dialling = [threading.Thread(target=dial) for _ in range(2)]
    for thread in dialling:
        thread.start()
    for _ in range(200):
        proxy.cut()
        proxy.heal()
    over.set()
    for thread in dialling:
        thread.join()
    until(lambda: proxy.connections == 0)
    gc.collect()  # an open socket that is collected is a warning, which is an error here


def test_the_port_stays_reserved_while_it_refuses_connections(proxy):
    proxy.cut()
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind((proxy.host, proxy.port))


def test_drop_resets_once_and_serves_the_next(proxy, connect):
    connection = connect()
    ask(connection)
    proxy.drop()

    with pytest.raises(ConnectionResetError):
        connection.recv(1)
    assert ask(connect()) == b"ping"


def test_stall_passes_nothing_and_heal_passes_what_was_held_back(proxy, echo, connect):
    connection = connect()
    ask(connection)
    proxy.stall()
    connection.sendall(b"held")

    assert silent(connection)
    assert echo.received == b"ping"
    newcomer = connect()
    newcomer.sendall(b"new")
    assert silent(newcomer)

    proxy.heal()
    assert read(connection, 4) == b"held"
    assert read(newcomer, 3) == b"new"


def test_stall_to_the_client_lets_the_request_through_and_loses_the_answer(proxy, echo, connect):
    connection = connect()
    proxy.stall(to="client")
    connection.sendall(b"publish")

    until(lambda: echo.received == b"publish")
    assert silent(connection)
    proxy.drop()
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


def test_a_stalled_connection_can_be_cut_and_its_end_is_not_told_while_it_is_stalled(proxy, echo, connect):
    connection = connect()
    ask(connection)
    proxy.stall()
    connection.close()
    time.sleep(QUIET)
    assert echo.ends == []

    proxy.cut()
    until(lambda: echo.ends == ["reset"])


def test_delay_adds_latency_each_way_without_limiting_the_throughput(proxy, connect):
    connection = connect()
    ask(connection)
    proxy.delay(0.1)
    began = time.monotonic()
    ask(connection)
    assert time.monotonic() - began >= 0.2

    body = bytes(2 * 1024 * 1024)  # passed chunk by chunk, each delayed by itself, it would take over six seconds
    sender = threading.Thread(target=connection.sendall, args=(body,))
    began = time.monotonic()
    sender.start()
    assert len(read(connection, len(body))) == len(body)
    assert time.monotonic() - began < 3
    sender.join()

    proxy.heal()
    took = []
    for _ in range(5):  # the machine may stand still in one of them
        began = time.monotonic()
        ask(connection)
        took.append(time.monotonic() - began)
    assert min(took) < 0.1


def test_half_close_tells_the_broker_and_leaves_the_client_with_a_dead_connection(proxy, echo, connect):
    connection = connect()
    ask(connection)
    proxy.half_close(tell="broker")

    until(lambda: echo.ends == ["eof"])
    connection.sendall(b"anyone?")
    assert silent(connection)
    connection.sendall(b"hello?")
    assert echo.received == b"ping"
    assert ask(connect()) == b"ping"


def test_half_close_tells_the_client_and_leaves_the_broker_with_a_dead_connection(proxy, echo, connect):
    connection = connect()
    ask(connection)
    proxy.half_close(tell="client")

    assert connection.recv(1) == b""
    time.sleep(QUIET)
    assert echo.ends == []
    assert proxy.connections == 1

    proxy.drop()
    until(lambda: echo.ends == ["reset"])


def test_random_cuts_repeat_with_their_seed(echo):
    def survived(seed):
        with FaultProxy("127.0.0.1", echo.port) as proxy:
            proxy.cut_randomly(0.2, seed=seed)
            outcome = []
            for _ in range(30):
                with socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE) as connection:
                    try:
                        outcome.append(ask(connection) == b"ping")
                    except ConnectionError:
                        outcome.append(False)
            return outcome

    assert survived(7) == survived(7)
    assert 0 < survived(7).count(False) < 30
    assert survived(7) != survived(8)


def test_heal_ends_random_cuts(proxy, connect):
    proxy.cut_randomly(1.0)
    with pytest.raises(ConnectionResetError):
        ask(connect())
    proxy.heal()
    assert ask(connect()) == b"ping"


def test_a_broker_that_refuses_is_passed_on_as_a_reset():
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # taken, and not listening
        with FaultProxy(*refusing.getsockname()) as proxy:
            address = (proxy.host, proxy.port)
            # It may come as early as in connect.
            with pytest.raises(ConnectionError), socket.create_connection(address, timeout=PATIENCE) as connection:
                ask(connection)
            until(lambda: proxy.connections == 0)


def test_close_ends_the_thread_and_frees_the_port(echo):
    proxy = FaultProxy("127.0.0.1", echo.port)
    with socket.create_connection((proxy.host, proxy.port), timeout=PATIENCE) as connection:
        ask(connection)
        proxy.stall()
        proxy.close()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    proxy.close()

    assert not any(thread.name.startswith("fault-proxy") for thread in threading.enumerate())
    with FaultProxy("127.0.0.1", echo.port, listen_port=proxy.port) as again:
        assert again.port == proxy.port


async def _conversation(proxy):
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
    finally:
        writer.close()


def test_is_used_from_within_a_running_event_loop(proxy):
    asyncio.run(_conversation(proxy))


def test_needs_no_third_party_package():
    code = "import msgbus.testing.faults, msgbus.testing.processes, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pytest", "hypothesis"} & {name.partition(".")[0] for name in loaded}
