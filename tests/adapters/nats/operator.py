"""A server's operator, an account with JetStream, and a user of it, as NATS's own tools would make them."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

import nkeys


def keys(kind: int) -> nkeys.KeyPair:
    """Return a new pair of keys."""
    return nkeys.from_seed(nkeys.encode_seed(secrets.token_bytes(32), kind))


def signed(signer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, claims: dict[str, Any]) -> str:
    """Return a JWT in which *signer* claims something about *subject*."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    body = {
        "jti": secrets.token_hex(16),
        "iat": 1_700_000_000,
        "iss": signer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": name,
        "nats": claims | {"version": 2},
    }
    text = part(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()) + b"." + part(json.dumps(body).encode())
    return (text + b"." + part(signer.sign(text))).decode()


def decentralised() -> tuple[str, str]:
    """Return what a server's configuration says about its operator, and the content of a user's credentials file."""
    operator, system = keys(nkeys.PREFIX_BYTE_OPERATOR), keys(nkeys.PREFIX_BYTE_ACCOUNT)
    account, user = keys(nkeys.PREFIX_BYTE_ACCOUNT), keys(nkeys.PREFIX_BYTE_USER)
    everything = {"subs": -1, "data": -1, "payload": -1}
    limits = everything | {"imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": True}
    limits |= {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    accounts = {
        system: signed(operator, system, "SYS", {"type": "account", "limits": everything | {"conn": -1}}),
        account: signed(operator, account, "shop", {"type": "account", "limits": limits}),
    }
    preloaded = "\n".join(f"  {pair.public_key.decode()}: {jwt}" for pair, jwt in accounts.items())
    described = signed(operator, operator, "ours", {"type": "operator"})
    config = f"""
operator: {described}
system_account: {system.public_key.decode()}
resolver: MEMORY
resolver_preload: {{
{preloaded}
}}
"""
    jwt = signed(account, user, "app", {"type": "user", **everything})
    credentials = f"""-----BEGIN NATS USER JWT-----
{jwt}
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
{user.seed.decode()}
------END USER NKEY SEED------
"""
    return config, credentials
