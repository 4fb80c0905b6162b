"""Takes the picture of the page that the README shows: a real host with a fleet that is on its way to a new firmware.

`python -m tests.screenshots` writes docs/console.png. It needs Mosquitto and Chromium.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from playwright.sync_api import ViewportSize

from functions.fleet.reports import DeviceReport, FileState
from functions.stored.database import Database
from functions.stored.fleet import FleetStore
from infra.local.chromium import chromium
from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from infra.migrations.runner import upgrade
from tests.fleet import FleetRig
from tests.hosts import event, record
from tests.stored import ADMIN

PICTURE = Path(__file__).parents[1] / "docs" / "console.png"
OLD, NEW = "esp32/fw-1.2.3.bin", "esp32/fw-1.2.4.bin"
MACS = [f"a1-b2-c3-d4-e5-{number:02x}" for number in range(24)]
SIZE = ViewportSize(width=860, height=480)


def main() -> None:
    """See the module's docstring."""
    with (
        chromium() as browser,
        tempfile.TemporaryDirectory() as name,
        MotoServer(Path(name) / "moto") as moto,
        Mosquitto(Path(name) / "mosquitto") as broker,
    ):
        rig = FleetRig(Path(name), moto, broker)
        old, new = rig.put(f"assets/{OLD}", b"old"), rig.put(f"assets/{NEW}", b"new")
        for mac in MACS[:3]:
            rig.put(f"configs/{mac}.json")
        upgrade(rig.url)
        store = FleetStore(Database(rig.url))
        now = datetime.now(UTC)
        store.know(MACS, "token", since=now)
        store.record([DeviceReport(mac, OLD, "installed", old) for mac in MACS], arrived_at=now)
        with rig.host() as host:
            host.post(event(record(f"assets/{NEW}", eTag=new)))
            counts: dict[FileState, int] = {"installed": 15, "installing": 2, "downloading": 3, "failed": 1}
            states = [state for state, count in counts.items() for _ in range(count)]
            said = [DeviceReport(mac, NEW, state, new) for mac, state in zip(MACS, states, strict=False)]
            said += [DeviceReport(mac, f"{mac}.json", "installed", rig.etag(f"configs/{mac}.json")) for mac in MACS[:2]]
            store.record(said, arrived_at=datetime.now(UTC))
            store.note_presence({mac: mac != MACS[-1] for mac in MACS}, at=now)
            page = browser.new_page(viewport=SIZE, color_scheme="light")
            page.goto(host.url)
            page.get_by_label("ADMIN_TOKENS").fill(ADMIN)
            page.get_by_role("button", name="Log in").click()
            page.get_by_role("link", name="Files").click()
            page.locator("tbody tr", has_text=NEW).wait_for()
            page.screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
