"""`make run`, `make demo` and `bucketbell demo`: the whole way on this machine, with real parts, before your eyes."""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape

from infra.local.detection import PICTURE, detect
from infra.local.install import InstallError, Say, ensure_mosquitto
from infra.local.process import PartError
from infra.local.stack import BUCKET, BUCKETBELL, MAC, MORE_MACS, STOP_SECONDS, TOPICS, DemoError, Stack, console
from infra.subscriber import SubscriberError

OTHER_MAC = "b1-b2-c3-d4-e5-f6"
CONFIG_KEY = f"configs/{MAC}.json"
ASSET_KEY = "assets/esp32/firmware-1.0.bin"
MISSED_KEY = "assets/esp32/firmware-1.1.bin"
ASSET_BYTES = 256 * 1024
PULL_SECONDS = 10.0
REPORTED_POLL_SECONDS = 0.1
SILENCE_SECONDS = 1.5

API = "/api/v1/integrations/mqtt"


def show_upload(stack: Stack, s3: Any, key: str, body: bytes, topic: str) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
    """Upload one object and show the message that it rang. Raises `DemoError` when another or none is heard."""
    began_at = time.monotonic()
    s3.put_object(Bucket=BUCKET, Key=key, Body=body)
    uploaded_at = time.monotonic()
    message = stack.hear(key)
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


def show_pull(stack: Stack, key: str, body: bytes) -> None:
    """Show that the device has the file on its disk. Raises `DemoError` if it does not, or if it has another."""
    line = stack.device.verified(key, seconds=PULL_SECONDS)
    file = stack.device.files / key
    if file.read_bytes() != body:
        raise DemoError(f"{file} is not what was uploaded as {key}")
    legs = ", ".join(f"{leg} {line[f'{leg}_ms']:.1f}" for leg in ("asked", "downloaded", "verified", "placed"))
    console.print(
        f"[bold green]pulled[/]  {len(body):,} bytes from the bucket, verified on disk by {line['by']}  "
        f"[bold]{line['total_ms']:.1f} ms[/] after it was heard of ({legs} ms)",
        soft_wrap=True,
    )


def show_who_has_it(stack: Stack, filename: str) -> None:
    """Show that each device has reported this file. Raises `DemoError` if the host has not heard so in time."""
    count = 1 + len(stack.more)
    began_at = time.monotonic()
    while not any(one["filename"] == filename and one["has_it"] == count for one in stack.uploads()):
        if time.monotonic() - began_at > PULL_SECONDS:
            raise DemoError(f"{filename} was not reported within {PULL_SECONDS:g} s:\n{stack.last_words()}")
        time.sleep(REPORTED_POLL_SECONDS)
    devices = "1 device has" if count == 1 else f"{count} devices have"
    console.print(
        f"[bold green]known[/]   {devices} it, by their own reports: {stack.host.url}/ shows it", soft_wrap=True
    )


def show_catch_up(stack: Stack, s3: Any) -> None:  # noqa: ANN401 - as above
    """Show that a device which was offline gets what it missed. Raises `DemoError` when it does not."""
    body = secrets.token_bytes(ASSET_BYTES)
    stack.device.stop(STOP_SECONDS)
    console.print("\n[bold]device[/]  away")
    show_upload(stack, s3, MISSED_KEY, body, TOPICS[1])
    if (stack.device.files / MISSED_KEY).exists():
        raise DemoError("a device that is offline cannot have pulled anything")
    begun_at = time.monotonic()
    with console.status("device …"):
        stack.device.start()
    console.print(f"[bold]device[/]  back, and asks for the manifest  [dim]{time.monotonic() - begun_at:.1f} s[/]")
    show_pull(stack, MISSED_KEY, body)
    show_who_has_it(stack, MISSED_KEY.removeprefix("assets/"))


def show_detection(stack: Stack) -> None:
    """Show a camera's event, and that its link opens the picture. Raises `DemoError` when it does not."""
    seen = detect(stack)
    size_bytes = len(PICTURE.read_bytes())
    console.print(f"\n[bold]upload[/]  {seen.key}.jpg  ({size_bytes:,} bytes)", soft_wrap=True)
    console.print(f"[bold]upload[/]  {seen.key}.json  ({seen.uploaded_ms:.1f} ms)", soft_wrap=True)
    console.print(
        f"[bold green]  rang[/]  {seen.message.topic}  [bold]{seen.heard_ms:.1f} ms[/] after that upload began"
    )
    for name, value in json.loads(seen.message.payload).items():
        console.print(f"        [dim]{name:<20}[/]  [cyan]{escape(json.dumps(value))}[/]", soft_wrap=True)
    console.print(
        f"[bold green]opened[/]  thumbnail_url: {seen.content_type}, {size_bytes:,} bytes, as it was uploaded  "
        f"[bold]{seen.opened_ms:.1f} ms[/]",
        soft_wrap=True,
    )


def demonstrate(stack: Stack) -> None:
    """Show the whole way: an upload rings and is pulled, a deletion is silent, an offline device catches up.

    Then a camera's event, with its picture.
    """
    s3 = stack.store.client("s3")
    for key, body, topic in (
        (CONFIG_KEY, b'{"interval_seconds": 30}\n', TOPICS[0]),
        (ASSET_KEY, secrets.token_bytes(ASSET_BYTES), TOPICS[1]),
    ):
        show_upload(stack, s3, key, body, topic)
        show_pull(stack, key, body)
    show_silence(stack, s3, CONFIG_KEY)
    show_catch_up(stack, s3)
    show_detection(stack)


def invite(stack: Stack) -> None:
    """Print what to paste to try it oneself."""
    store, broker, host = stack.store, stack.broker, stack.host
    python = (
        f"""import boto3; boto3.client("s3").put_object(Bucket="{BUCKET}", Key="assets/hello.txt", Body=b"hello")"""
    )
    mc = f"mc alias set bell {store.endpoint_url} {store.access_key} {store.secret_key}"
    exports = " ".join(f"{name}={value}" for name, value in stack.credentials.items())
    another = " ".join(f"{name}={value}" for name, value in stack.device_environment(OTHER_MAC).items())
    api = f"BUCKETBELL_SERVER={host.url} BUCKETBELL_TOKEN={stack.admin_token}"
    lines = (
        ("In another terminal", ""),
        ("  the store's address and keys", f"export {exports}"),
        ("  upload with boto3", f"{sys.executable} -c '{python}'"),
        ("  … with aws", f"echo hello | aws s3 cp - s3://{BUCKET}/assets/hello.txt"),
        ("  … with mc", f"{mc} && echo hello | mc pipe bell/{BUCKET}/assets/hello.txt"),
        ("  hear it", f"mosquitto_sub -h 127.0.0.1 -p {broker.port} -t 'iotsupport/#' -v"),
        ("  … with all properties", f"MQTT_URL={broker.url} {BUCKETBELL} listen --json"),
        ("  be another device", f"{another} {BUCKETBELL} device --directory ./files"),
        ("  the device's files", str(stack.device.files)),
        ("  the broker, by the API", f"{api} {BUCKETBELL} mqtt status"),
        ("  … with curl", f"curl -H 'Authorization: Bearer {stack.admin_token}' {host.url}{API}/config"),
        ("  … in a browser", f"{host.url}/docs (Authorize: {stack.admin_token})"),
        ("  who has what, in a browser", f"{host.url}/ (log in with {stack.admin_token})"),
        ("  … in the terminal", f"{api} {BUCKETBELL} fleet files"),
        ("  what became of an upload", f"{api} {BUCKETBELL} why {ASSET_KEY}"),
        ("  is anything wrong?", f"cd {host.directory} && {BUCKETBELL} doctor --host-url {host.url}"),
        ("  announce to one device", f"{api} {BUCKETBELL} ring {ASSET_KEY} --device {MAC}"),
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
        for part in (stack.broker, stack.store, stack.host, stack.device):
            if not part.running:
                raise DemoError(f"{part.name} has ended:\n{stack.last_words()}")
        with contextlib.suppress(TimeoutError):
            message = stack.subscriber.next(1.0)
            moment = time.strftime("%H:%M:%S", time.localtime(message.received_wall))
            console.print(f"{moment}  [bold green]rang[/]  {message.topic}  [cyan]{message.payload.decode()}[/]")


def present(*, stay: bool, ensure: Callable[[Say], object]) -> int:
    """Show every step, and with `stay` go on until a person stops it; the exit status.

    `ensure` sees to the programs that are needed, or raises `InstallError`.
    """
    # SIGTERM ends it in the same orderly way as Ctrl-C, which a shell's background job would ignore.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    begun_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bucketbell-") as directory:
        stack = None
        try:
            ensure(console.print)
            stack = Stack(Path(directory), MORE_MACS if stay else ())
            stack.start()
            console.print(f"[dim]ready in {time.monotonic() - begun_at:.1f} s[/]")
            demonstrate(stack)
            if stay:
                invite(stack)
                show_what_rings(stack)
        except KeyboardInterrupt:
            console.print("\nstopping …")
            return 0 if stay else 130
        except (DemoError, InstallError, PartError, SubscriberError) as error:
            Console(stderr=True, highlight=False).print(f"[bold red]failed[/] {escape(str(error))}", soft_wrap=True)
            return 1
        finally:
            # A second Ctrl-C must not leave half of it running.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if stack is not None:
                stack.stop()
    console.print("\n[bold green]every step was seen[/]")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the stack; 0 when every step was seen (`demo`) or the person stopped it (`run`)."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.demo", description=__doc__)
    parser.add_argument("mode", choices=("run", "demo"), help="`run` stays up until Ctrl-C; `demo` ends by itself")
    return present(stay=parser.parse_args(arguments).mode == "run", ensure=ensure_mosquitto)


if __name__ == "__main__":
    sys.exit(main())
