"""Loopback ports, and short conversations that tell whether a server answers."""

from __future__ import annotations

import random
import socket
import urllib.request
from pathlib import Path

__all__ = ["HOST", "accepts", "exchange", "free_port", "free_ports", "http_status"]

HOST = "127.0.0.1"
_LOWEST = 15000
_PROBE_TIMEOUT = 5.0  # seconds for one answer: a server that starts on a busy machine may take a while


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on.

    It lies below the range that the kernel hands to outgoing connections: there, a client that keeps reconnecting to a
    stopped broker sooner or later gets the broker's own port as its source and connects to itself.
    """
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return *count* different ports, as `free_port` has it: two single calls may choose the same one."""
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(_LOWEST, max(first_ephemeral, _LOWEST + 5000))
    found: list[int] = []
    for port in random.sample(candidates, k=200 + count):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"{len(found)} of {count} ports between {candidates.start} and {candidates.stop} found free")


def accepts(port: int) -> bool:
    """Return whether somebody takes connections on *port* of 127.0.0.1."""
    try:
        socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT).close()
    except OSError:
        return False
    return True


def exchange(port: int, request: bytes, size: int) -> bytes:
    """Send *request* to 127.0.0.1 and return up to *size* bytes of the answer.

    Returns:
        The answer; empty if nobody listens, the connection was dropped, or no answer came within five seconds.
    """
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT) as connection:
            connection.sendall(request)
            return connection.recv(size)
    except OSError:
        return b""


def http_status(port: int, path: str = "/") -> int | None:
    """Return the status that a GET answers with, None if there is no answer."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=_PROBE_TIMEOUT) as response:
            return int(response.status)
    except urllib.error.HTTPError as exc:
        return exc.code
    except OSError:
        return None
