"""The recipes for reverse proxies, each in the real program, in front of a real host and a real MinIO."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import boto3
import httpx
import pytest
from botocore.config import Config

from functions.settings import load
from functions.web.tokens import Keyring
from infra.host.web.limited_router import HANDLER_SECONDS
from infra.host.web.site import MAX_BODY_BYTES
from infra.local.certificates import Certificates, make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stores import Minio
from tests.conftest import missing
from tests.hosts import TOKEN, Host, environment, eventually, upload
from tests.timing import PATIENCE_SECONDS

RECIPES = Path(__file__).parents[2] / "infra/deploy/proxies"
BUCKET = "devices"
ADMIN = "an-administrators-token-0123456789"
SECRET = base64.b64encode(bytes(32)).decode()
RING = Keyring.parse([f"k:{SECRET}"])
PER_MINUTE = 30
MIB = 1 << 20
HEALTH_SECONDS = 0.5  # in place of Caddy's five
# Each segment of 255 bytes at most, for MinIO keeps them in files; 1,024 bytes with its prefix, S3's limit.
LONG = "/".join(["прошивка-" * 14, "прошивка-" * 14, "прошивка-" * 14, "прошивка-" * 12 + "v2.bin"])
ODD = "a b+c&d=e%2Ff;g,h'(i)/ü 火 %25 ~.bin"


class Proxy(Process):
    """One of the programs with its recipe, on ports of its own, in front of these ports of a host and a store."""

    def __init__(self, name: str, directory: Path, files: Certificates, *, host_port: int, store_port: int) -> None:
        self.program = name
        self.bell_port, self.files_port = free_port(), free_port()
        self.bell_url, self.files_url = (f"https://localhost:{port}" for port in (self.bell_port, self.files_port))
        self.files = files
        recipe = {"nginx": "nginx.conf", "caddy": "Caddyfile"}[name]
        self._text = (RECIPES / recipe).read_text(encoding="utf-8")
        self._replace("127.0.0.1:8080", f"127.0.0.1:{host_port}")
        self._replace("127.0.0.1:9000", f"127.0.0.1:{store_port}")
        self._replace("/etc/ssl/bucketbell.pem", str(files.server_cert))
        self._replace("/etc/ssl/bucketbell.key", str(files.server_key))
        self._config = directory / recipe
        self._main = directory / "main.conf"
        binary = shutil.which(name) or shutil.which(name, path="/usr/sbin") or missing(name, f"install `{name}`")
        arguments = {
            "nginx": ["-e", "stderr", "-p", str(directory), "-c", str(self._main)],
            "caddy": ["run", "--config", str(self._config), "--adapter", "caddyfile"],
        }[name]
        home = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)}
        super().__init__(name, [binary, *arguments], directory, environment=home)
        (self._for_nginx if name == "nginx" else self._for_caddy)()

    def _replace(self, old: str, new: str, count: int = -1) -> None:
        assert old in self._text, old
        self._text = self._text.replace(old, new, count)

    def _for_nginx(self) -> None:
        for port in (self.bell_port, self.files_port):
            self._replace("listen 443 ", f"listen 127.0.0.1:{port} ", 1)
        for name in ("bell.example.org;", "files.example.org;"):
            self._replace(f"server_name {name}", "server_name localhost;")
        self._replace("/var/log/nginx/", f"{self.directory}/")

    def _for_caddy(self) -> None:
        self._replace("\n{\n", "\n{\n\tadmin off\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n")
        self._replace("\nbell.example.org {", f"\n{self.bell_url} {{")
        self._replace("\nfiles.example.org {", f"\n{self.files_url} {{")
        self._replace("health_interval 5s", f"health_interval {HEALTH_SECONDS:g}s")

    def prepare(self) -> None:
        """Writes the recipe, and what Debian has around it."""
        self._config.write_text(self._text, encoding="utf-8")
        temporary = [
            f"{kind}_temp_path temporary-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        ]
        user = "user root; " if os.geteuid() == 0 else ""  # the directories of the tests are root's
        http = f"http {{ {' '.join(temporary)} include {self._config}; }}"
        self._main.write_text(f"{user}daemon off; pid nginx.pid; events {{}}\n{http}\n")

    def is_ready(self) -> bool:
        """Whether it listens."""
        with socket.socket() as one, socket.socket() as other:
            return not (
                one.connect_ex(("127.0.0.1", self.bell_port)) or other.connect_ex(("127.0.0.1", self.files_port))
            )

    @property
    def context(self) -> ssl.SSLContext:
        """A client's, that trusts our authority alone."""
        return ssl.create_default_context(cafile=self.files.ca_file)

    def client(self, *, address: str = "127.0.0.1") -> httpx.Client:
        """A client of either, at this address of this machine."""
        transport = httpx.HTTPTransport(verify=self.context, local_address=address)
        return httpx.Client(base_url=self.bell_url, transport=transport, timeout=PATIENCE_SECONDS)

    def logs(self) -> str:
        """All that it has written."""
        return "\n".join(file.read_text(errors="replace") for file in self.directory.glob("*.log"))

    def has_logged(self, *words: str) -> bool:
        """Whether all of these are in it."""
        return all(word in self.logs() for word in words)


@dataclass
class World:
    """A proxy in front of a host and a store, and the broker behind them."""

    proxy: Proxy
    host: Host
    broker: Mosquitto
    http: httpx.Client
    s3: Any
    """boto3's client of the store, by way of the proxy."""

    def get(self, path: str, *, method: str = "GET", token: str = "") -> httpx.Response:
        """Ask for a file as a device that is new, by a path as it goes over the wire."""
        token = token or RING.mint(f"02-00-00-{uuid4().hex[:2]}-{uuid4().hex[:2]}-{uuid4().hex[:2]}")
        return self.http.request(method, path, headers={"Authorization": f"Bearer {token}"})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    minio: Minio,
    mosquitto_binary: Path,
    files: Certificates,
) -> Iterator[World]:
    """Each proxy in turn."""
    del mosquitto_binary
    directory = tmp_path_factory.mktemp(request.param)
    host_port = free_port()
    proxy = Proxy(request.param, directory / "proxy", files, host_port=host_port, store_port=minio.port)
    s3 = boto3.session.Session().client(
        "s3",
        endpoint_url=proxy.files_url,
        aws_access_key_id=minio.access_key,
        aws_secret_access_key=minio.secret_key,
        region_name=minio.region,
        verify=str(files.ca_file),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}),
    )
    with Mosquitto(directory / "mosquitto") as broker:
        known = environment(
            broker.url,
            MQTT_PUBLISH_TIMEOUT_SECONDS="1",
            TRUSTED_PROXIES="127.0.0.1",
            PUBLIC_BASE_URL=proxy.bell_url,
            S3_PUBLIC_ENDPOINT_URL=proxy.files_url,
            BUCKET=BUCKET,
            EVENTS_PREFIX="events/",
            DEVICE_TOKEN_KEYS=f"k:{SECRET}",
            ADMIN_TOKENS=ADMIN,
            DEVICE_REQUESTS_PER_MINUTE=str(PER_MINUTE),
            AWS_ENDPOINT_URL_S3=minio.endpoint_url,
            AWS_ACCESS_KEY_ID=minio.access_key,
            AWS_SECRET_ACCESS_KEY=minio.secret_key,
            AWS_REGION=minio.region,
        )
        with Host(directory, known, port=host_port) as host, proxy, closing(proxy.client()) as http:
            if not minio.client().list_buckets()["Buckets"]:
                s3.create_bucket(Bucket=BUCKET)
            eventually(lambda: http.get("/readyz").status_code == 200)
            yield World(proxy, host, broker, http, s3)


# The host.


@pytest.mark.parametrize("name", [LONG, ODD], ids=["long", "odd"])
def test_any_name_is_found_and_downloaded(world: World, name: str) -> None:
    """Uploaded through the proxy, found through it by path, and fetched through it by the URL that the host signed."""
    body = os.urandom(1000)
    world.s3.put_object(Bucket=BUCKET, Key=f"assets/{name}", Body=body)
    for path in (quote(name), quote(name, safe="")):  # also where a client encodes slashes
        found = world.get(f"/assets/{path}")
        assert found.status_code == 307, found.text
        url = found.headers["location"]
        assert url.startswith(f"{world.proxy.files_url}/{BUCKET}/assets/")
        assert name != LONG or len(url) > 4096
        got = world.http.get(url)
        assert (got.status_code, got.content) == (200, body)
    described = world.get(f"/assets/{quote(name)}", method="HEAD")
    assert (described.status_code, described.headers["content-length"]) == (200, "1000")


def test_a_store_rings_and_hears_why_it_must_come_again(world: World) -> None:
    """Both doors; a body of the host's full size, its own 413 for a larger one, its 503 while the broker is silent."""
    login = {"Authorization": f"Bearer {TOKEN}"}

    def post(body: bytes, door: str = "/events") -> httpx.Response:
        return world.http.post(door, content=body, headers=login)

    assert post(upload()).json() == {"outcomes": ["no_subscribers"]}
    assert post(upload(), "/events/fast").status_code == 202
    assert post(upload().ljust(MAX_BODY_BYTES)).status_code == 200
    assert post(b" " * (MAX_BODY_BYTES + 1)).json()["status"] == 413
    world.broker.freeze()
    try:
        answer = post(upload())
        assert (answer.status_code, answer.json()) == (503, {"outcomes": ["unconfirmed"]})
        assert "retry-after" in answer.headers
    finally:
        world.broker.thaw()
        eventually(lambda: post(upload()).status_code == 200)


def test_downloads_go_on_while_the_broker_is_down(world: World) -> None:
    """A proxy that asks for readiness asks for that of downloads: it leaves the host in."""
    world.s3.put_object(Bucket=BUCKET, Key="assets/x", Body=b"x")
    world.broker.stop()
    try:
        eventually(lambda: world.host.http.get("/readyz").status_code == 503)
        time.sleep(3 * HEALTH_SECONDS)
        assert world.http.get("/readyz").status_code == 503
        assert world.http.get("/readyz?for=downloads").json() == {"ready": True}
        assert world.get("/assets/x").status_code == 307
        answer = world.http.get("/api/v1/integrations/mqtt/status", headers={"Authorization": f"Bearer {ADMIN}"})
        assert answer.status_code in {200, 503}
        assert answer.headers["content-type"].startswith("application/")
    finally:
        world.broker.start()
        eventually(lambda: world.http.get("/readyz").status_code == 200)


def test_a_client_counts_by_its_own_address(world: World) -> None:
    """One that has asked too often is refused, whatever it says of itself; its neighbour is not."""
    with (
        closing(world.proxy.client(address="127.0.0.2")) as one,
        closing(world.proxy.client(address="127.0.0.3")) as other,
    ):
        answers = [one.get("/openapi.json").status_code for _ in range(PER_MINUTE + 3)]
        assert answers[0] == 200
        assert answers[-1] == 429
        for forged in ({"X-Forwarded-For": "127.0.0.9"}, {"Forwarded": "for=127.0.0.9"}):
            assert one.get("/openapi.json", headers=forged).status_code == 429
        assert other.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/metrics?x", "/%6detrics"])
def test_metrics_are_not_for_everybody(world: World, path: str) -> None:
    """404 at the proxy; Prometheus asks the host itself."""
    assert world.http.get(path).status_code == 404
    assert world.host.http.get(path).status_code == 200


# The store.


def test_what_is_signed_stays_as_it_was(world: World) -> None:
    """A large upload in parts, metadata under odd names, HEAD, a range, a deletion: the signatures hold."""
    body, key = os.urandom(6 * MIB), f"assets/{ODD}"
    parts = world.s3.create_multipart_upload(Bucket=BUCKET, Key=key, Metadata={"a.b_c": "d  e"})
    where = {"Bucket": BUCKET, "Key": key, "UploadId": parts["UploadId"]}
    tags = [
        {"PartNumber": number, "ETag": world.s3.upload_part(**where, PartNumber=number, Body=piece)["ETag"]}
        for number, piece in enumerate((body[: 5 * MIB], body[5 * MIB :]), 1)
    ]
    world.s3.complete_multipart_upload(**where, MultipartUpload={"Parts": tags})
    head = world.s3.head_object(Bucket=BUCKET, Key=key)
    metadata = {name.lower(): value for name, value in head["Metadata"].items()}  # a header's name has no case
    assert (head["ContentLength"], metadata) == (len(body), {"a.b_c": "d  e"})
    ranged = world.s3.get_object(Bucket=BUCKET, Key=key, Range="bytes=5242870-5242889")
    assert (ranged["ResponseMetadata"]["HTTPStatusCode"], ranged["Body"].read()) == (206, body[5242870:5242890])
    assert world.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body
    world.s3.delete_object(Bucket=BUCKET, Key=key)
    assert "Contents" not in world.s3.list_objects_v2(Bucket=BUCKET, Prefix=key)


@pytest.fixture
def upstream() -> Iterator[socket.socket]:
    """A socket in the place of the host or of the store."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_SECONDS)
        yield listener


@contextmanager
def saying(proxy: Proxy, port: int, words: bytes) -> Iterator[ssl.SSLSocket]:
    """A client that has sent these very bytes."""
    with (
        socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as raw,
        proxy.context.wrap_socket(raw, server_hostname="localhost") as client,
    ):
        client.sendall(words)
        yield client


def receive(listener: socket.socket, body_bytes: int = 0) -> tuple[socket.socket, bytes]:
    """The next connection with a request that is no look at the health, and what has come of it."""
    while True:
        accepted, _ = listener.accept()
        accepted.settimeout(PATIENCE_SECONDS)
        came = b""
        while b"\r\n\r\n" not in came or len(came.partition(b"\r\n\r\n")[2]) < body_bytes:
            came += accepted.recv(MIB)
        if not came.startswith(b"GET /readyz"):
            return accepted, came
        accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        accepted.close()


@pytest.mark.parametrize("behind", ["host", "store"])
@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_an_address_goes_on_as_it_came(
    tmp_path: Path, files: Certificates, upstream: socket.socket, name: str, behind: str
) -> None:
    """Path, query and Host to the letter: both are signed. A query may have 10 KB: some credentials are long."""
    target = f"/{BUCKET}/{quote(ODD)}/%2F//%41?X=%2b&Y=a+b%20c&Z={'z' * 10_000}"
    ports = {"host_port": free_port(), "store_port": free_port(), f"{behind}_port": upstream.getsockname()[1]}
    with Proxy(name, tmp_path, files, **ports) as proxy:
        port = proxy.bell_port if behind == "host" else proxy.files_port
        with saying(proxy, port, f"GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()):
            accepted, came = receive(upstream)
            accepted.close()
    first, _, rest = came.partition(b"\r\n")
    assert first == f"GET {target} HTTP/1.1".encode()
    assert re.findall(rb"(?im)^host: (.*)\r$", rest) == [f"localhost:{port}".encode()]


@pytest.mark.parametrize("name", ["nginx", "caddy"])
def test_an_upload_is_passed_on_while_it_comes(
    tmp_path: Path, files: Certificates, upstream: socket.socket, name: str
) -> None:
    """The store has the first half before the second is sent."""
    half = b"x" * MIB
    with Proxy(name, tmp_path, files, host_port=free_port(), store_port=upstream.getsockname()[1]) as proxy:
        fields = f"Host: localhost:{proxy.files_port}\r\nContent-Length: {2 * len(half)}\r\n\r\n"
        with saying(proxy, proxy.files_port, f"PUT /x HTTP/1.1\r\n{fields}".encode() + half) as client:
            accepted, came = receive(upstream, len(half))
            with accepted:
                client.sendall(half)
                while len(came.partition(b"\r\n\r\n")[2]) < 2 * len(half):
                    came += accepted.recv(MIB)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert client.recv(4096).startswith(b"HTTP/1.1 200 ")


# What is written down.


def test_no_secret_is_logged(tmp_path: Path, world: World, files: Certificates) -> None:
    """Neither a token in an address nor a presigned URL, also where host and store are down."""
    world.s3.put_object(Bucket=BUCKET, Key="assets/y", Body=b"y")
    signed = urlsplit(world.get("/assets/y").headers["location"])
    picture = RING.mint_for_object("events/front/e1.jpg")
    asked = (f"/events?token={TOKEN}", f"/thumbnails/front/e1.jpg?token={picture}", "/healthz")

    def ask(proxy: Proxy, http: httpx.Client) -> list[int]:
        bell = [http.post(path, content=upload()) if "/events" in path else http.get(path) for path in asked]
        return [one.status_code for one in (*bell, http.get(f"{proxy.files_url}{signed.path}?{signed.query}"))]

    with (
        Proxy(world.proxy.program, tmp_path, files, host_port=free_port(), store_port=free_port()) as alone,
        closing(alone.client()) as http,
    ):
        assert set(ask(alone, http)) <= {502, 503}
        assert ask(world.proxy, world.http) == [200, 404, 200, 200]
        for proxy in (alone, world.proxy):
            eventually(partial(proxy.has_logged, "/assets/y", "/thumbnails/front"))
            logs = proxy.logs() + unquote(proxy.logs())
            secrets = (TOKEN, picture, signed.query[-64:], "X-Amz-Signature", "token=")
            assert [one for one in secrets if one in logs] == []


def test_a_recipe_says_what_it_is() -> None:
    """In its first line."""
    for recipe in RECIPES.iterdir():
        assert recipe.read_text(encoding="utf-8").startswith("# "), recipe.name


def test_a_recipe_waits_longer_than_the_host() -> None:
    """For the broker's answer to one message, and the store's to one question before it: with time to spare."""
    slowest = load({}).settings.mqtt_publish_timeout_seconds + HANDLER_SECONDS
    for recipe, waits in (("nginx.conf", "proxy_read_timeout"), ("Caddyfile", "response_header_timeout")):
        found = re.findall(rf"{waits} (\d+)s", (RECIPES / recipe).read_text(encoding="utf-8"))
        assert len(found) == 2
        assert min(map(int, found)) > 2 * slowest
