"""Logging in and encryption, against a broker that insists on them."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time

import pytest

from msgbus.adapter import AdapterConfig, Address, BusURL, Kind, Outgoing, Source, SubscribeOptions, Topology
from msgbus.errors import AccessDenied, BrokerUnavailable, ConfigError
from msgbus_kafka import KafkaAdapter
from scripts.brokers._broker import run_step
from scripts.brokers._net import HOST
from scripts.brokers.fixtures import unavailable
from scripts.brokers.kafka import _CLUSTER, Kafka

PASSWORD = "s3cret/pass"
JAAS = "org.apache.kafka.common.security"


class SecureKafka(Kafka):
    """Listens for each way to log in on a port of its own."""

    extra = ("PLAINSASL", "SCRAM", "OAUTH", "TLS", "TLSSASL")

    def __init__(self, certificates):
        super().__init__()
        self.certificates = certificates

    def _prepare(self):
        super()._prepare()
        shutil.rmtree(self.folder / "data")
        step = ["kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", f"{self.folder}/server.properties"]
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
            step += ["--add-scram", f"{mechanism}=[name=alice,password={PASSWORD}]"]
        run_step(self._java(*step))

    def _properties(self):
        lines = super()._properties().splitlines()
        protocols = {"TLS": "SSL", "TLSSASL": "SASL_SSL"}
        extra = {
            "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in self.ports.items()),
            "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in self.ports.items()),
            "listener.security.protocol.map": ",".join(
                f"{name}:{protocols.get(name, 'SASL_PLAINTEXT')}" for name in self.ports
            ),
        }
        lines = [
            f"{line},{extra[line.partition('=')[0]]}" if line.partition("=")[0] in extra else line for line in lines
        ]
        plain = f'{JAAS}.plain.PlainLoginModule required user_alice="{PASSWORD}";'
        scram = f"{JAAS}.scram.ScramLoginModule required;"
        token = f'{JAAS}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="x";'
        lines += [
            "listener.name.plainsasl.sasl.enabled.mechanisms=PLAIN",
            f"listener.name.plainsasl.plain.sasl.jaas.config={plain}",
            "listener.name.tlssasl.sasl.enabled.mechanisms=PLAIN",
            f"listener.name.tlssasl.plain.sasl.jaas.config={plain}",
            "listener.name.scram.sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512",
            f"listener.name.scram.scram-sha-256.sasl.jaas.config={scram}",
            f"listener.name.scram.scram-sha-512.sasl.jaas.config={scram}",
            "listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER",
            f"listener.name.oauth.oauthbearer.sasl.jaas.config={token}",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self.certificates}/server.pem",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.certificates}/ca.crt",
            "listener.name.tls.ssl.client.auth=required",
        ]
        return "\n".join(lines) + "\n"


def make_certificates(folder):
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    (folder / "names").write_text(f"subjectAltName=IP:{HOST}\n")
    for who in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}"
        )
        openssl(
            *("x509", "-req", "-in", f"{who}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{who}.crt", "-extfile", "names"),
        )
    (folder / "server.pem").write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    if shutil.which("openssl") is None:
        unavailable("openssl not found: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    with SecureKafka(folder) as broker:
        yield broker


async def unsecured_token() -> str:
    """Return a token as brokers without an authority take it."""
    now = time.time() - 5  # the broker does not take tokens from the future, not even from its millisecond's end

    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none'})}.{part({'sub': 'alice', 'iat': now, 'exp': now + 300})}."


async def round_trip(url):
    source = Source(Address(Kind.QUEUE, f"q-{time.monotonic_ns()}"))
    adapter = KafkaAdapter(BusURL.parse(url), AdapterConfig())
    await adapter.open()
    try:
        await adapter.declare(Topology((source.address,), (source,)))
        assert await adapter.publish([Outgoing(source.address, b"x", {}, "id")]) == [None]
        subscription = await adapter.subscribe(source, SubscribeOptions())
        (got,) = await subscription.receive(1, 10.0)
        assert got.body == b"x"
    finally:
        await adapter.aclose()


def test_a_password_is_enough(secure):
    credentials = "alice:s3cret%2Fpass"
    for port, query in (
        ("PLAINSASL", ""),
        ("PLAINSASL", "?sasl=plain"),
        ("SCRAM", "?sasl=scram-sha-256"),
        ("SCRAM", "?sasl=scram-sha-512"),
    ):
        asyncio.run(round_trip(f"kafka://{credentials}@{HOST}:{secure.ports[port]}{query}"))


def test_a_token_comes_from_a_function(secure):
    query = "?sasl=oauthbearer&token=tests.adapters.kafka.test_security:unsecured_token"
    asyncio.run(round_trip(f"kafka://{HOST}:{secure.ports['OAUTH']}{query}"))


def test_certificates_of_both_sides(secure):
    files = secure.certificates
    query = f"?cafile={files}/ca.crt&certfile={files}/client.crt&keyfile={files}/client.key"
    asyncio.run(round_trip(f"kafkas://{HOST}:{secure.ports['TLS']}{query}"))


def test_a_password_over_an_encrypted_connection(secure):
    query = f"?tls=true&cafile={secure.certificates}/ca.crt"
    asyncio.run(round_trip(f"kafka://alice:s3cret%2Fpass@{HOST}:{secure.ports['TLSSASL']}{query}"))


@pytest.mark.parametrize(
    ("port", "credentials", "query"),
    [("PLAINSASL", "alice:wrong-s3cret", ""), ("SCRAM", "mallory:wrong-s3cret", "?sasl=scram-sha-512")],
)
def test_a_wrong_password_is_told_without_the_password(secure, port, credentials, query):
    with pytest.raises(AccessDenied) as caught:
        asyncio.run(round_trip(f"kafka://{credentials}@{HOST}:{secure.ports[port]}{query}"))
    assert "wrong-s3cret" not in str(caught.value)
    assert f"{HOST}:{secure.ports[port]}" in str(caught.value)


def test_an_unknown_authority_is_not_trusted(secure):
    with pytest.raises(BrokerUnavailable):
        asyncio.run(round_trip(f"kafkas://{HOST}:{secure.ports['TLSSASL']}"))


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("kafka://h/path", "no path"),
        ("kafka://h?nope=1", "no option 'nope'"),
        ("kafka://h?sasl=magic", "one of plain"),
        ("kafka://h?sasl=plain", "user name and a password"),
        ("kafka://h?sasl=oauthbearer", "token=module:function"),
        ("kafka://h?sasl=oauthbearer&token=nowhere:f", "does not load"),
        ("kafka://h?sasl=oauthbearer&token=json:loads", "async function"),
        ("kafka://h?sasl=oauthbearer&token=json", "async function"),
        ("kafkas://h?cafile=/nowhere", "TLS files"),
        ("kafka://h?partitions=0", "at least 1"),
        ("kafka://h?session_timeout=0", "more than 0"),
        ("kafka://h?rebalance_drain=60", "0 to 20"),
    ],
)
def test_options_that_make_no_sense(url, text):
    with pytest.raises(ConfigError, match=text):
        KafkaAdapter(BusURL.parse(url), AdapterConfig())


def test_servers_of_a_url():
    adapter = KafkaAdapter(BusURL.parse("kafka://one,two:9093,[::1]:9094?check_hostname=false"), AdapterConfig())
    assert adapter._connection["bootstrap_servers"] == ["one:9092", "two:9093", "[::1]:9094"]
    bare = KafkaAdapter(BusURL.parse("kafka://"), AdapterConfig())
    assert bare._connection["bootstrap_servers"] == ["localhost:9092"]


async def refused_token() -> str:
    """Return a token of which the broker can make nothing."""
    return "no.token.atall"


def test_a_refused_token_is_told_at_once(secure):
    """The library takes the broker's refusal of a token for its consent; we do not."""
    query = "?sasl=oauthbearer&token=tests.adapters.kafka.test_security:refused_token"
    with pytest.raises(AccessDenied, match=f"{HOST}:{secure.ports['OAUTH']}"):
        asyncio.run(round_trip(f"kafka://{HOST}:{secure.ports['OAUTH']}{query}"))
