"""``amqps://``: verified by default, with client certificates, all of it through a terminator before the broker."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from msgbus.adapter import AdapterConfig, BusURL
from msgbus.errors import AccessDenied, BrokerUnavailable, ConfigError
from msgbus_rabbitmq import RabbitMQAdapter
from tests.adapters.rabbitmq.conftest import subscribe, take

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture(scope="session")
def pki(tmp_path_factory):
    """Return a folder with an authority, a server's and a client's certificate."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    ca = ("-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", *ca)
    for name in ("server", "client"):
        alt = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        openssl(
            "req", "-x509", *new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *alt
        )
    return folder


@asynccontextmanager
async def terminator(broker, pki, *, client_certificates=False):
    """Serve TLS before the broker; yield the port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki / "ca.pem")
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    if client_certificates:
        context.verify_mode = ssl.CERT_REQUIRED
    parts = urlsplit(broker.url)

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        to_broker = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(pump(reader, to_broker[1]), pump(to_broker[0], writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def test_a_round_trip(rig, pki):
    source = rig.queue()
    async with terminator(rig.broker, pki) as port:
        url = f"amqps://guest:guest@localhost:{port}/?ca={pki}/ca.pem"
        async with rig.adapter(source, url=url) as adapter:
            await rig.publish(adapter, source, *map(str, range(500)))
            subscription = await subscribe(adapter, source, prefetch=500)
            assert sorted(await take(subscription, 500)) == sorted(map(str, range(500)))
            big = rig.message(source, "big")
            big.body = b"x" * 1_000_000
            assert await adapter.publish([big]) == [None]
            assert len((await take(subscription, 1))[0]) == 1_000_000


async def test_an_unknown_authority_is_refused(rig, pki):
    async with terminator(rig.broker, pki) as port:
        with pytest.raises(AccessDenied, match="certificate verify failed"):
            async with rig.adapter(url=f"amqps://guest:guest@localhost:{port}/"):
                pass


async def test_a_client_certificate_is_shown(rig, pki):
    source = rig.queue()
    async with terminator(rig.broker, pki, client_certificates=True) as port:
        url = f"amqps://guest:guest@127.0.0.1:{port}/?ca={pki}/ca.pem"
        with pytest.raises(BrokerUnavailable):
            async with rig.adapter(url=url):
                pass
        async with rig.adapter(source, url=f"{url}&cert={pki}/client.pem&key={pki}/client.key") as adapter:
            await rig.publish(adapter, source, "a")
            assert await take(await subscribe(adapter, source), 1) == ["a"]


async def test_certificates_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}/none.pem"):
        RabbitMQAdapter(BusURL.parse(f"amqps://127.0.0.1:1/?ca={tmp_path}/none.pem"), AdapterConfig())
