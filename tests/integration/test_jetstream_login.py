"""How the host and the tools log in at a real NATS server, and what they never do."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]  # it has no stubs
import pytest

from infra.connect.errors import ConnectError
from infra.local.certificates import Certificates, make_certificates
from infra.local.nats_server import NatsServer
from tests.integration.jetstream_rig import NAMES, set_up, waiting

pytestmark = pytest.mark.usefixtures("nats_binary")


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """For TLS on this machine."""
    return make_certificates(tmp_path / "certificates")


class Key:
    """An NKey of a kind (`SU`: a user's seed, …)."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), kind)
        self.pair = nkeys.from_seed(self.seed)
        self.public = self.pair.public_key.decode()

    def jwt(self, subject: str, name: str, claims: dict[str, Any]) -> str:
        """What this key says of `subject`, as NATS reads it."""
        body = {
            "iat": int(time.time()),
            "iss": self.public,
            "name": name,
            "sub": subject,
            "nats": claims | {"version": 2},
        }
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        header = {"typ": "JWT", "alg": "ed25519-nkey"}
        signed = ".".join(map(_encoded, (json.dumps(header).encode(), json.dumps(body).encode())))
        return f"{signed}.{_encoded(self.pair.sign(signed.encode()))}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_token(tmp_path: Path) -> None:
    """NATS_TOKEN logs in; a wrong one is named by what to correct."""
    with NatsServer(tmp_path / "nats", token="a-token-4711") as server:
        assert set_up(server, NATS_TOKEN="a-token-4711")
        with pytest.raises(ConnectError, match="the credentials are refused"):
            set_up(server, NATS_TOKEN="another")


def test_an_nkey(tmp_path: Path) -> None:
    """NATS_NKEY_FILE holds a seed, which never leaves this process."""
    key = Key(nkeys.PREFIX_BYTE_USER)
    file = tmp_path / "user.nk"
    file.write_bytes(key.seed)
    with NatsServer(tmp_path / "nats", users=({"nkey": key.public},)) as server:
        assert set_up(server, NATS_NKEY_FILE=str(file))
        file.write_bytes(Key(nkeys.PREFIX_BYTE_USER).seed)
        with pytest.raises(ConnectError, match="the credentials are refused"):
            set_up(server, NATS_NKEY_FILE=str(file))


def test_a_credentials_file(tmp_path: Path) -> None:
    """NATS_CREDS_FILE holds a user's JWT and seed, as `nsc` writes them."""
    account_kind = nkeys.PREFIX_BYTE_ACCOUNT
    kinds = (nkeys.PREFIX_BYTE_OPERATOR, account_kind, account_kind, nkeys.PREFIX_BYTE_USER)
    operator, system, account, user = map(Key, kinds)
    unlimited = {"subs": -1, "data": -1, "payload": -1}
    limits = unlimited | {"conn": -1, "leaf": -1, "imports": -1, "exports": -1, "wildcards": True}
    storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    of_account = {"type": "account", "limits": limits | storage}
    extra = {
        "operator": operator.jwt(operator.public, "operator", {"type": "operator"}),
        "resolver": "MEMORY",
        "system_account": system.public,
        "resolver_preload": {
            system.public: operator.jwt(system.public, "system", {"type": "account", "limits": limits}),
            account.public: operator.jwt(account.public, "account", of_account),
        },
    }
    jwt = account.jwt(user.public, "bell", {"type": "user"} | unlimited)
    file = tmp_path / "bell.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    with NatsServer(tmp_path / "nats", extra=extra) as server:
        assert set_up(server, NATS_CREDS_FILE=str(file))


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    """They are named by what is wrong, not by a traceback."""
    with NatsServer(tmp_path / "nats", token="a-token-4711") as server:
        for variable in ("NATS_CREDS_FILE", "NATS_NKEY_FILE"):
            with pytest.raises(ConnectError, match=variable):
                set_up(server, **{variable: "/etc/hostname"})


def test_tls_with_a_client_certificate(tmp_path: Path, certificates: Certificates) -> None:
    """`tls://` with the authority and the client's certificate; another authority is refused, with its variable."""
    with NatsServer(tmp_path / "nats", certificates=certificates, require_client_certificate=True, users=()) as server:
        ours = {"NATS_CERT_FILE": str(certificates.client_cert), "NATS_KEY_FILE": str(certificates.client_key)}
        assert set_up(server, NATS_CA_FILE=str(certificates.ca_file), **ours)
        with pytest.raises(ConnectError, match=r"not trusted.*NATS_CA_FILE"):
            set_up(server, NATS_CA_FILE=str(certificates.stranger_ca_file), **ours)


def test_credentials_are_never_sent_in_the_clear(tmp_path: Path, nats_server: NatsServer) -> None:
    """A server that does not ask for TLS, where `tls://` promises it, gets nothing but the end of the connection."""
    del tmp_path
    nats_server.stop()
    nats_server.token = "a-token-4711"
    nats_server.start()
    url = nats_server.url.replace("nats://", "tls://")
    with pytest.raises(ConnectError, match="does not ask for TLS"):
        set_up(nats_server, NATS_URL=url, NATS_TOKEN="a-token-4711")
    assert set_up(nats_server, NATS_TOKEN="a-token-4711")


def test_a_server_of_several(tmp_path: Path, nats_server: NatsServer) -> None:
    """One that answers is enough, wherever it stands in the list."""
    del tmp_path
    assert set_up(nats_server, NATS_URL=f"nats://127.0.0.1:1,{nats_server.url},nats://nowhere.invalid")
    assert waiting(nats_server) == 0


def test_a_missing_right_is_named(tmp_path: Path) -> None:
    """With the subject that the server names."""
    rights = {"publish": [f"{NAMES.stream}.events"], "subscribe": ["_INBOX.>"]}
    users = ({"user": "minio", "password": "pw-of-minio", "permissions": rights},)
    with (
        NatsServer(tmp_path / "nats", users=users) as server,
        pytest.raises(ConnectError, match=r"a right is missing.*\$js\.api"),
    ):
        set_up(server, NATS_USERNAME="minio", NATS_PASSWORD="pw-of-minio")


def test_nobody_at_the_address(tmp_path: Path) -> None:
    """It is named, with the address."""
    server = NatsServer(tmp_path / "nats")
    with pytest.raises(ConnectError, match=rf"127.0.0.1:{server.port}.*refused"):
        set_up(server)
    assert not list(tmp_path.iterdir())
