"""The page in Chromium, with 10,000 devices: how soon it is there, and how soon it says that all have an upload.

SQLite, one host, MinIO, and Mosquitto with the limits of our container composition; all devices have reported.
"""

from __future__ import annotations

import json
import random
import secrets
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.bench.reports import HEARD, STORED, fleet_rig
from infra.bench.rig import BUCKET, Rig, asset_keys, mac_address
from infra.bench.sweep import metric, until
from infra.host.metrics import PrometheusTelemetry
from infra.local.chromium import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

DEVICES, TOLD = 10_000, 200
TARGET_SECONDS = 1.0
ROUNDS, QUICK_ROUNDS = 15, 5
GROUP = 20
PAUSE_SECONDS = 0.2  # at most, between two groups of devices
REPORT_SECONDS = 30.0
LOOK_MILLISECONDS = 10_000

SAYS = """([file, count]) => [...document.querySelectorAll("tbody tr")].some((row) =>
    row.cells[0].textContent === file && row.querySelector("[data-name='have it']").textContent === count)"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
LISTED = "document.querySelector('tbody tr') && performance.now()"

_Report = Callable[[Sequence[int], str, str], None]


def measure(bench: Bench) -> list[Figure]:
    """Uploads that 200 devices report, twenty at a time; then the list of devices is opened again and again.

    Warm: this Chromium has opened the page before. It is looked at with each frame.
    """
    rounds, token = bench.count(ROUNDS, QUICK_ROUNDS), secrets.token_hex(24)
    with chromium() as browser, fleet_rig(bench.directory, ADMIN_TOKENS=token) as rig, _devices(rig) as report:
        page = browser.new_context(bypass_csp=True).new_page()  # the policy forbids what `wait_for_function` does
        page.set_default_timeout(LOOK_MILLISECONDS)
        bench.say(f"{DEVICES:,} devices report")
        report(range(DEVICES), "esp32/fw.bin", "")
        until(lambda: metric(rig.host, STORED) >= DEVICES, REPORT_SECONDS)
        page.goto(rig.host.url)
        page.get_by_label("ADMIN_TOKENS").fill(token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Uploads").wait_for()
        bench.say(f"{rounds} uploads, each reported by {TOLD} devices")
        beyond, whole = zip(*[_upload(rig, page, report, key) for key in asset_keys("page", rounds)], strict=True)
        bench.say(f"the page is opened {rounds} times")
        _open(rig, page)
        painted, listed = zip(*[_open(rig, page) for _ in range(rounds)], strict=True)
    said = f"upload → the page says that all {TOLD} have it, beyond the acknowledgement of the last one's report"
    return [
        _figure(said, beyond, f"{statistics.median(whole):.2f} s since the upload began"),
        _figure(f"first paint of the page with {DEVICES:,} devices, warm", painted),
        _figure("the same, until the first of them are listed", listed),
    ]


def _figure(what: str, took: Sequence[float], detail: str = "") -> Figure:
    spread = min(took), max(took)
    return Figure(what, statistics.median(took), "≤", TARGET_SECONDS, "s", detail, spread=spread, rounds=len(took))


def _upload(rig: Rig, page: Page, report: _Report, key: str) -> tuple[float, float]:
    """Seconds until the page says that all have it: since the last report was acknowledged, since the upload began."""
    filename = key.removeprefix("assets/")
    began_at = acknowledged_at = time.monotonic()
    etag = str(rig.s3.put_object(Bucket=BUCKET, Key=key, Body=filename.encode())["ETag"]).strip('"')
    page.wait_for_function(SAYS, arg=[filename, "0"])
    for first in range(0, TOLD, GROUP):
        time.sleep(random.uniform(0, PAUSE_SECONDS))
        report(range(first, first + GROUP), filename, etag)
        acknowledged_at = time.monotonic()
    page.wait_for_function(SAYS, arg=[filename, str(TOLD)])
    shown_at = time.monotonic()
    return shown_at - acknowledged_at, shown_at - began_at


def _open(rig: Rig, page: Page) -> tuple[float, float]:
    """Seconds until something is painted, and until devices are listed."""
    page.goto("about:blank")  # from there it is not the same document
    page.goto(f"{rig.host.url}/#/devices")
    listed, painted = (page.wait_for_function(what).json_value() for what in (LISTED, PAINTED))
    return painted / 1e3, listed / 1e3


@contextmanager
def _devices(rig: Rig) -> Iterator[_Report]:
    """What reports that these devices have installed a file, and returns when the broker has acknowledged all of it."""
    publisher = InlinePublisher(BrokerConfig(host=rig.broker.host, port=rig.broker.port), PrometheusTelemetry())

    def report(devices: Sequence[int], filename: str, etag: str) -> None:
        body = json.dumps({"filename": filename, "etag": etag, "state": "installed"}).encode()
        messages = [Message(f"{HEARD}/devices/{mac_address(device)}/report", body) for device in devices]
        for outcome in publisher.publish(messages, time.monotonic() + REPORT_SECONDS):
            if outcome.status is not Status.DELIVERED:
                raise NotMeasuredError(f"a report was {outcome.status}: {outcome.reason}")

    with closing(publisher):
        yield report
