"""``amqps://`` against RabbitMQ's own TLS listener: verified by default, with client certificates."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from msgbus.adapter import AdapterConfig, BusURL
from msgbus.errors import AccessDenied, BrokerUnavailable, ConfigError
from msgbus_rabbitmq import RabbitMQAdapter
from scripts.brokers import BrokerMissing
from scripts.brokers._net import HOST, free_port
from scripts.brokers.fixtures import unavailable
from scripts.brokers.rabbitmq import RabbitMQ
from tests.adapters.rabbitmq.conftest import Rig, eventually, receive, subscribe, take

OTHER_HOST = "127.0.0.2"
"""Not in the certificate."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """Return a folder with an authority, a server's and a client's certificate."""
    if shutil.which("openssl") is None:
        unavailable("openssl not found: apt-get install openssl")
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


class SecureRabbitMQ(RabbitMQ):
    """Also listens for TLS, wants a client certificate, and takes its common name for the user's."""

    def __init__(self, pki):
        super().__init__()
        self.tls_port = free_port()
        self._pki = pki

    def _prepare(self):
        super()._prepare()
        (self.folder / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
        with (self.folder / "rabbitmq.conf").open("a") as conf:
            conf.write(
                f"""\
listeners.ssl.local = {HOST}:{self.tls_port}
listeners.ssl.other = {OTHER_HOST}:{self.tls_port}
ssl_options.cacertfile = {self._pki}/ca.pem
ssl_options.certfile = {self._pki}/server.pem
ssl_options.keyfile = {self._pki}/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
"""
            )


@pytest.fixture(scope="module")
def broker(pki):
    try:
        broker = SecureRabbitMQ(pki)
    except BrokerMissing as exc:
        unavailable(str(exc))
    with broker:
        broker.ctl("add_user", "client", "no-password-is-asked-for")
        broker.ctl("set_permissions", "client", ".*", ".*", ".*")
        yield broker


@pytest.fixture
def rig(broker, pki):
    rig = Rig(broker)
    rig.files = f"ca={pki}/ca.pem&cert={pki}/client.pem&key={pki}/client.key"
    rig.url = f"amqps://guest:guest@localhost:{broker.tls_port}/"
    return rig


async def test_a_round_trip_with_a_client_certificate(rig):
    source = rig.queue()
    async with rig.adapter(source, url=f"{rig.url}?{rig.files}") as adapter:
        await rig.publish(adapter, source, *map(str, range(500)))
        subscription = await subscribe(adapter, source, prefetch=500)
        assert sorted(await take(subscription, 500)) == sorted(map(str, range(500)))
        big = rig.message(source, "big")
        big.body = b"x" * 1_000_000
        assert await adapter.publish([big]) == [None]
        assert len((await take(subscription, 1))[0]) == 1_000_000
        assert (await adapter.stats(source)).dead == 0
        assert adapter.raw.connection.server_properties["product"] == "RabbitMQ"


async def test_a_cut_is_repaired(rig):
    source = rig.queue()
    async with rig.adapter(source, url=f"{rig.url}?{rig.files}") as adapter:
        await rig.publish(adapter, source, "a")
        subscription = await subscribe(adapter, source)
        await receive(subscription, 1)
        adapter._consuming.require().abort(ConnectionResetError("cut"))
        await eventually(lambda: adapter.health.ok, "it is connected again")

        assert await take(subscription, 1) == ["a"]


async def test_the_certificate_instead_of_a_password(rig):
    source = rig.queue()
    url = f"amqps://localhost:{rig.broker.tls_port}/?{rig.files}&auth=external"
    async with rig.adapter(source, url=url) as adapter:
        await rig.publish(adapter, source, "a")
        assert await take(await subscribe(adapter, source), 1) == ["a"]
        assert "client\n" in rig.broker.ctl("list_connections", "user")


async def test_without_a_client_certificate_the_broker_refuses(rig, pki):
    with pytest.raises(BrokerUnavailable):
        async with rig.adapter(url=f"{rig.url}?ca={pki}/ca.pem"):
            pass


async def test_an_unknown_authority_is_refused(rig, pki):
    with pytest.raises(AccessDenied, match="certificate verify failed"):
        async with rig.adapter(url=f"{rig.url}?cert={pki}/client.pem&key={pki}/client.key"):
            pass


async def test_another_host_name_than_the_certificate_has_is_refused(rig):
    with pytest.raises(AccessDenied, match="certificate verify failed"):
        async with rig.adapter(url=f"amqps://guest:guest@{OTHER_HOST}:{rig.broker.tls_port}/?{rig.files}"):
            pass


async def test_plain_tcp_to_the_tls_port_is_an_outage(rig):
    with pytest.raises(BrokerUnavailable):
        async with rig.adapter(url=f"amqp://guest:guest@localhost:{rig.broker.tls_port}/"):
            pass


async def test_certificates_that_cannot_be_loaded_are_named(tmp_path):
    with pytest.raises(ConfigError, match=f"{tmp_path}/none.pem"):
        RabbitMQAdapter(BusURL.parse(f"amqps://127.0.0.1:1/?ca={tmp_path}/none.pem"), AdapterConfig())
