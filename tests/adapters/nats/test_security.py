"""Credentials and TLS, as real servers ask for them; and nothing secret in any error."""

from __future__ import annotations

import shutil
import subprocess

import nkeys
import pytest

from msgbus.adapter import DeadLetter, Provision, Source
from msgbus.errors import AccessDenied, BrokerUnavailable, ConfigError
from scripts.brokers import BrokerMissing
from scripts.brokers.fixtures import unavailable
from scripts.brokers.nats import NATS
from tests.adapters.nats.conftest import Kit
from tests.adapters.nats.operator import decentralised

SECRET = "correct-horse"


class Configured(NATS):
    """A server with more in its configuration."""

    def __init__(self, more: str) -> None:
        super().__init__()
        self._more = more

    def _prepare(self) -> None:
        super()._prepare()
        with (self.folder / "nats.conf").open("a") as file:
            file.write(self._more)

    def _ready(self) -> bool:
        if "handshake_first" not in self._more:
            return super()._ready()
        return "Server is ready" in self.log.read_text()


@pytest.fixture
def serve():
    """Start a server with this in its configuration, and return a kit for it."""
    running = []

    def start(more: str) -> Kit:
        try:
            broker = Configured(more)
        except BrokerMissing as exc:
            unavailable(str(exc))
        running.append(broker)
        broker.start()
        return Kit(broker)

    yield start
    for broker in running:
        broker.close()


async def works(kit, url, query=""):
    queue = kit.queue()
    source = Source(queue)
    async with kit.adapter(queue, source, url=url, query=query) as adapter:
        await kit.publish(adapter, kit.message(queue, "x"))
        subscription = await kit.consumer(adapter, source)
        await kit.ack(subscription, await kit.receive(subscription, 1))


async def is_denied(kit, url, query=""):
    with pytest.raises(AccessDenied) as caught:
        await works(kit, url, query)
    assert SECRET not in repr(caught.value)
    assert SECRET not in repr(caught.value.__cause__)


def at(kit, userinfo="", scheme="nats"):
    return f"{scheme}://{userinfo}127.0.0.1:{kit.broker.port}"


def test_user_and_password(serve):
    kit = serve(f'authorization {{ user: "me", password: "{SECRET}" }}')

    async def body():
        await works(kit, at(kit, f"me:{SECRET}@"))
        await is_denied(kit, at(kit, f"you:{SECRET}@"))
        await is_denied(kit, at(kit))

    kit.run(body())


def test_a_token(serve):
    kit = serve(f'authorization {{ token: "{SECRET}" }}')

    async def body():
        await works(kit, at(kit, f"{SECRET}@"))
        await works(kit, at(kit), f"&token={SECRET}")
        await is_denied(kit, at(kit), "&token=wrong")

    kit.run(body())


def test_an_nkey(serve, tmp_path):
    pair = nkeys.from_seed(b"SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY")
    seed = tmp_path / "user.nk"
    seed.write_bytes(b"SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n")
    kit = serve(f"authorization {{ users: [{{ nkey: {pair.public_key.decode()} }}] }}")

    async def body():
        await works(kit, at(kit), f"&nkey={seed}")
        await is_denied(kit, at(kit))
        with pytest.raises(ConfigError, match="nkey= names cannot be read: No such file"):
            await works(kit, at(kit), f"&nkey={tmp_path}/missing")

    kit.run(body())


def test_a_credentials_file(serve, tmp_path):
    """As decentralised authentication, and NATS as a service, use it."""
    config, content = decentralised()
    stranger = tmp_path / "stranger.creds"
    stranger.write_text(decentralised()[1])
    credentials = tmp_path / "app.creds"
    credentials.write_text(content)
    kit = serve(config)

    async def body():
        await works(kit, at(kit), f"&creds={credentials}")
        await is_denied(kit, at(kit), f"&creds={stranger}")
        await is_denied(kit, at(kit))
        with pytest.raises(ConfigError, match="creds= names cannot be read: No such file"):
            await works(kit, at(kit), f"&creds={tmp_path}/missing")

    kit.run(body())


def test_an_account_without_jetstream_says_so(serve):
    kit = serve('accounts { A { users: [{ user: "a", password: "b" }] } }')

    async def body():
        with pytest.raises(BrokerUnavailable, match="JetStream"):
            await works(kit, at(kit, "a:b@"))

    kit.run(body())


def test_only_the_subjects_that_are_needed(serve):
    """What an account must be allowed, as docs/adapters/nats.md lists it."""
    kit = serve("")  # for its prefix only
    prefix = kit.prefix
    kit = serve(f"""
authorization {{
  users: [{{
    user: "app", password: "{SECRET}"
    permissions: {{
      publish: ["{prefix}.>", "$JS.API.>", "$JS.ACK.>", "_INBOX.>"]
      subscribe: ["{prefix}.>", "_INBOX.>"]
    }}
  }}]
}}""")
    kit.prefix = prefix

    async def body():
        await works(kit, at(kit, f"app:{SECRET}@"))

    kit.run(body())


def test_only_the_subjects_that_are_needed_where_nothing_is_created(serve):
    """As for applications under MSGBUS_TOPOLOGY=verify, dead letters and a key's order included."""
    kit = serve("")
    prefix = kit.prefix
    reads = ["STREAM.INFO.*", "STREAM.MSG.GET.*", "CONSUMER.INFO.>", "CONSUMER.MSG.NEXT.>", "CONSUMER.UNPIN.>"]
    allowed = ", ".join(f'"$JS.API.{read}"' for read in [*reads, f"CONSUMER.CREATE.{prefix}-dead.>"])
    kit = serve(f"""
authorization {{
  users: [
    {{ user: "admin", password: "{SECRET}" }}
    {{
      user: "app", password: "{SECRET}"
      permissions: {{
        publish: ["{prefix}.>", {allowed}, "$JS.ACK.>", "_INBOX.>"]
        subscribe: ["{prefix}.>", "_INBOX.>"]
      }}
    }}
  ]
}}""")
    kit.prefix = prefix

    async def body():
        source = Source(kit.queue(keyed=True))
        async with kit.adapter(source, url=at(kit, f"admin:{SECRET}@")):
            pass
        url = at(kit, f"app:{SECRET}@")
        async with kit.adapter(source, url=url, provision=Provision.VERIFY) as adapter:
            await kit.publish(adapter, kit.message(source.address, "x", "ann"))
            subscription = await kit.consumer(adapter, source)
            (received,) = await kit.receive(subscription, 1)
            assert await subscription.settle([DeadLetter(received, received.headers)]) == [None]
            assert len(await adapter.browse(source.dead_letters, limit=9)) == 1
            graves = await kit.consumer(adapter, source.dead_letters)
            await kit.ack(graves, await kit.receive(graves, 1))
            assert (await adapter.stats(source)).dead == 0

    kit.run(body())


def test_a_forbidden_publish_is_refused_soon(serve):
    """The server drops it and tells only the connection as a whole."""
    kit = serve(f"""
authorization {{
  users: [{{ user: "app", password: "{SECRET}", permissions: {{ publish: {{ deny: ["*.queue.secret"] }} }} }}]
}}""")

    async def body():
        queue, secret = kit.queue(), kit.queue("secret")
        async with kit.adapter(queue, secret, url=at(kit, f"app:{SECRET}@")) as adapter:
            first, second, third = await adapter.publish(
                [kit.message(queue, "x"), kit.message(secret, "x"), kit.message(queue, "y")]
            )
            assert first is third is None
            assert type(second).__name__ == "PublishRejected"
            assert "permission" in str(second)

    kit.run(body())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A certificate authority, and certificates for the server and a client."""
    if shutil.which("openssl") is None:
        unavailable("openssl is not installed: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    authority = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=keyCertSign"]
    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem", *authority)
    for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "subjectAltName=DNS:client")):
        (folder / f"{name}.ext").write_text(extension)
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", "csr")
        sign = ["x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
        openssl(*sign, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return folder


def tls_block(folder, more=""):
    return f'tls {{ cert_file: "{folder}/server.pem", key_file: "{folder}/server.key", {more} }}\n'


def test_tls(serve, certificates):
    kit = serve(tls_block(certificates))

    async def body():
        await works(kit, at(kit, scheme="tls"), f"&tls_ca={certificates}/ca.pem")
        await works(kit, at(kit), f"&tls_ca={certificates}/ca.pem")
        with pytest.raises((AccessDenied, BrokerUnavailable), match="certificate"):
            await works(kit, at(kit, scheme="tls"))

    kit.run(body())


def test_tls_first_and_client_certificates(serve, certificates):
    kit = serve(tls_block(certificates, f'ca_file: "{certificates}/ca.pem", verify: true, handshake_first: true'))

    async def body():
        trust = f"&tls_first=true&tls_ca={certificates}/ca.pem"
        await works(kit, at(kit), f"{trust}&tls_cert={certificates}/client.pem&tls_key={certificates}/client.key")
        with pytest.raises(BrokerUnavailable):
            await works(kit, at(kit), trust)
        with pytest.raises(ConfigError, match="TLS options"):
            await works(kit, at(kit), f"&tls_ca={certificates}/nothing.pem")

    kit.run(body())


def test_no_password_goes_to_a_server_without_tls(serve):
    kit = serve(f'authorization {{ user: "me", password: "{SECRET}" }}')

    async def body():
        with pytest.raises((AccessDenied, BrokerUnavailable), match="secure connection|TLS"):
            await works(kit, at(kit, f"me:{SECRET}@", scheme="tls"))
        log = kit.broker.log.read_text()
        assert "authentication error" not in log.lower()

    kit.run(body())


def test_an_unreachable_server_is_an_error_in_time(serve):
    async def body():
        kit = serve("")
        kit.broker.kill()
        with pytest.raises(BrokerUnavailable, match="refused|Connect"):
            await works(kit, at(kit, f"me:{SECRET}@"))

    serve("").run(body())
