"""`make run` and `make demo`: the whole way on this machine, with real parts, before your eyes.

Everything listens on free ports of 127.0.0.1, lives in one temporary folder, and is gone at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from infra.connect.documents import default_queue_name
from infra.connect.minio import Doors
from infra.local.install import InstallError, ensure_mosquitto, find_minio
from infra.local.mosquitto import Mosquitto
from infra.local.process import PartError, Process, free_port
from infra.local.stores import Minio, MotoServer, Store
from infra.subscriber import Subscriber, SubscriberError

BUCKET = "devices"
TOPICS = ("iotsupport/updates/configs", "iotsupport/updates/assets")
CONFIG_KEY = "configs/a1-b2-c3-d4-e5-f6.json"
ASSET_KEY = "assets/firmware-1.0.bin"
ASSET_BYTES = 256 * 1024
HEAR_SECONDS = 10.0
SILENCE_SECONDS = 1.5
CONNECT_SECONDS = 30.0
STOP_SECONDS = 2.5
LAST_WORDS_CHARACTERS = 1500

BUCKETBELL = str(Path(sys.executable).with_name("bucketbell"))
# What the person's own shell may say about brokers and stores is not about ours.
OURS = ("MQTT_", "AWS_", "BUCKET", "TOPIC_", "CONFIGS_", "ASSETS_", "WEBHOOK_", "SQS_", "SECRETS_", "LOG_")

console = Console(highlight=False)


class DemoError(Exception):
    """A step of the demonstration was not seen."""


class Host(Process):
    """`bucketbell host` with nothing but environment variables, as a person would run it."""

    def __init__(self, directory: Path, port: int, environment: dict[str, str]) -> None:
        """`environment` replaces what the person's own shell says about brokers and stores."""
        super().__init__(
            "host",
            [BUCKETBELL, "host", "--port", str(port)],
            directory,
            environment=environment,
            without=OURS,
            working_directory=directory,  # not the person's .env either
            ready=self._is_ready,
        )
        self.url = f"http://127.0.0.1:{port}"

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=1) as answer:  # noqa: S310 - our own http URL
            return bool(answer.status == HTTPStatus.OK)
        return False


class Stack:
    """Broker, store and host, started in that order; `stop` ends all of them at once."""

    def __init__(self, directory: Path) -> None:
        """Nothing is started yet."""
        self.directory = directory
        self.token = secrets.token_hex(24)
        host_port = free_port()
        self.broker = Mosquitto(directory / "mosquitto")
        self.doors = Doors(
            f"http://127.0.0.1:{host_port}",
            sure_only=False,
            queue_directory=str(directory / "minio-events"),
            token=self.token,
        )
        self.store: Store
        if find_minio():
            self.store = Minio(directory / "minio", environment=self.doors.environment())
        else:
            self.store = MotoServer(directory / "moto")
        self.host = Host(directory / "host", host_port, {})
        self.subscriber = Subscriber(self.broker.url, TOPICS)

    @property
    def credentials(self) -> dict[str, str]:
        """boto3's variables for the store."""
        return {
            "AWS_ENDPOINT_URL": self.store.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.store.access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_key,
            "AWS_REGION": self.store.region,
        }

    def start(self) -> None:
        """Start everything and set the bucket up with `bucketbell connect`."""
        step("Mosquitto", self.broker.start, self.broker.url)
        if isinstance(self.store, Minio):
            what = f"MinIO at {self.store.endpoint_url}"
        else:
            what = f"moto at {self.store.endpoint_url}: S3 → SQS in memory; for a real MinIO: `make minio`, then again"
        step("object store", self.store.start, what)
        step("bucket", self._connect, f"{BUCKET}, set up by `bucketbell connect`")
        step("host", self._start_host, f"{self.host.url} is ready")
        step("subscriber", self.subscriber.start, "listens as a device would")

    def stop(self) -> None:
        """End everything within `STOP_SECONDS`; idempotent."""
        with contextlib.suppress(Exception):
            self.subscriber.stop()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda part: part.stop(STOP_SECONDS), (self.host, self.store, self.broker)))

    def last_words(self) -> str:
        """Return the ends of the logs, for a person who has to find out what went wrong."""
        parts = (self.broker, self.store, self.host)
        return "\n".join(f"--- {part.name}\n{part.log_text()[-LAST_WORDS_CHARACTERS:]}" for part in parts)

    def _connect(self) -> None:
        """Run the real command, as the README tells people to."""
        command = [BUCKETBELL, "connect", "--create", "--endpoint-url", self.store.endpoint_url, "--bucket", BUCKET]
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        done = subprocess.run(
            [*command, "--host-url", self.host.url],
            env={**environment, **self.credentials, "WEBHOOK_TOKENS": self.token},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=CONNECT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"`bucketbell connect` failed:\n{done.stdout}{done.stderr}")

    def _start_host(self) -> None:
        environment = {"MQTT_URL": self.broker.url, "BUCKET": BUCKET, "WEBHOOK_TOKENS": self.token, **self.credentials}
        if isinstance(self.store, MotoServer):
            queue = self.store.client("sqs").get_queue_url(QueueName=default_queue_name(BUCKET))
            environment["SQS_QUEUE_URL"] = queue["QueueUrl"]
        self.host.environment = environment
        self.host.start()


def step(name: str, work: Callable[[], object], result: str) -> None:
    """Do one thing, with a spinner (a line, without a terminal) while it takes, and say how it ended."""
    begun_at = time.monotonic()
    with console.status(f"{name} …"):
        work()
    console.print(f"[green]✓[/] {name:<13} {result}  [dim]{time.monotonic() - begun_at:.1f} s[/]")


def show_upload(stack: Stack, s3: Any, key: str, body: bytes, topic: str) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
    """Upload one object and show the message that it rang. Raises `DemoError` when another or none is heard."""
    began_at = time.monotonic()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    uploaded_at = time.monotonic()
    try:
        message = stack.subscriber.next(HEAR_SECONDS)
    except TimeoutError:
        raise DemoError(
            f"nothing was heard within {HEAR_SECONDS:g} s of uploading {key}:\n{stack.last_words()}"
        ) from None
    filename = key.split("/", 1)[1]
    if (message.topic, json.loads(message.payload)) != (topic, {"filename": filename}):
        raise DemoError(f"heard something else after uploading {key}: {message}")
    console.print(f"\n[bold]upload[/]  {key}  ({len(body):,} bytes, {(uploaded_at - began_at) * 1e3:.1f} ms)")
    console.print(
        f"[bold green]  rang[/]  {message.topic}  [cyan]{message.payload.decode()}[/]  "
        f"[bold]{(message.received_at - began_at) * 1e3:.1f} ms[/] after the upload began",
        soft_wrap=True,
    )


def show_silence(stack: Stack, s3: Any, key: str) -> None:  # noqa: ANN401 - as above
    """Delete one object and show that nothing rings. Raises `DemoError` when something does."""
    s3.delete_object(Bucket=BUCKET, Key=key)
    console.print(f"\n[bold]delete[/]  {key}")
    with console.status("listening …"):
        heard = stack.subscriber.silence(SILENCE_SECONDS)
    if heard:
        raise DemoError(f"a deletion rang: {heard[0]}")
    console.print(f"[bold green]silent[/]  no message within {SILENCE_SECONDS:g} s: deletions never ring")


def demonstrate(stack: Stack) -> None:
    """Show that an upload rings and a deletion does not."""
    s3 = stack.store.client("s3")
    show_upload(stack, s3, CONFIG_KEY, b'{"interval_seconds": 30}\n', TOPICS[0])
    show_upload(stack, s3, ASSET_KEY, secrets.token_bytes(ASSET_BYTES), TOPICS[1])
    show_silence(stack, s3, CONFIG_KEY)


def invite(stack: Stack) -> None:
    """Print what to paste to try it oneself."""
    store, broker, host = stack.store, stack.broker, stack.host
    python = f"""import boto3; boto3.client("s3").upload_file("README.md", "{BUCKET}", "assets/README.md")"""
    mc = f"mc alias set bell {store.endpoint_url} {store.access_key} {store.secret_key}"
    exports = " ".join(f"{name}={value}" for name, value in stack.credentials.items())
    lines = (
        ("In another terminal", ""),
        ("  the store's address and keys", f"export {exports}"),
        ("  upload with boto3", f"{sys.executable} -c '{python}'"),
        ("  … with aws", f"aws s3 cp README.md s3://{BUCKET}/assets/README.md"),
        ("  … with mc", f"{mc} && mc cp README.md bell/{BUCKET}/assets/"),
        ("  hear it", f"mosquitto_sub -h 127.0.0.1 -p {broker.port} -t 'iotsupport/updates/#' -v"),
        ("  … with all properties", f"MQTT_URL={broker.url} {BUCKETBELL} listen --json"),
        ("  is it ready?", f"curl {host.url}/readyz"),
        ("  metrics", f"curl {host.url}/metrics"),
        ("  logs", str(stack.directory)),
    )
    console.print()
    for what, command in lines:
        console.print(f"[bold]{what}[/]")
        if command:
            console.print(f"      {command}", soft_wrap=True, style="cyan")
    console.print("\nEverything that rings is shown here. [bold]Ctrl-C[/] stops it all.\n")


def show_what_rings(stack: Stack) -> NoReturn:
    """Print each message until interrupted. Raises `DemoError` when a part ends by itself."""
    while True:
        for part in (stack.broker, stack.store, stack.host):
            if not part.running:
                raise DemoError(f"{part.name} has ended:\n{stack.last_words()}")
        with contextlib.suppress(TimeoutError):
            message = stack.subscriber.next(1.0)
            moment = time.strftime("%H:%M:%S", time.localtime(message.received_wall))
            console.print(f"{moment}  [bold green]rang[/]  {message.topic}  [cyan]{message.payload.decode()}[/]")


def main(arguments: list[str] | None = None) -> int:
    """Run the stack; 0 when every step was seen (`demo`) or the person stopped it (`run`)."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.stack", description=__doc__)
    parser.add_argument("mode", choices=("run", "demo"), help="`run` stays up until Ctrl-C; `demo` ends by itself")
    mode = parser.parse_args(arguments).mode
    # SIGTERM ends it in the same orderly way as Ctrl-C, which a shell's background job would ignore.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    begun_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bucketbell-") as directory:
        stack = None
        try:
            ensure_mosquitto(console.print)
            stack = Stack(Path(directory))
            stack.start()
            console.print(f"[dim]ready in {time.monotonic() - begun_at:.1f} s[/]")
            demonstrate(stack)
            if mode == "run":
                invite(stack)
                show_what_rings(stack)
        except KeyboardInterrupt:
            console.print("\nstopping …")
            return 0 if mode == "run" else 130
        except (DemoError, InstallError, PartError, SubscriberError) as error:
            Console(stderr=True, highlight=False).print(f"[bold red]failed[/] {error}", soft_wrap=True)
            return 1
        finally:
            # A second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if stack is not None:
                stack.stop()
    console.print("\n[bold green]every step was seen[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
