"""The console in a real browser: what a person sees, types and reads, while the host lives, restarts and dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from functions.fleet.reports import DeviceReport
from functions.stored.database import Database
from functions.stored.fleet import AT_ONCE, FleetStore
from infra.local.chromium import REMEDY, chromium
from infra.local.mosquitto import Mosquitto
from infra.local.process import PartError, free_port
from infra.local.stores import MotoServer
from infra.migrations.runner import upgrade
from tests.conftest import missing
from tests.fleet import FILE, MAC, OTHER, FleetRig, hears
from tests.hosts import Host, event, eventually, record
from tests.stored import ADMIN
from tests.timing import PATIENCE_SECONDS

EVIL = "<img src=x onerror=alert(1)>"
NARROW = 360
ALL_THAT_TAB_REACHES = 40  # on one page, and more
GATHER_MILLISECONDS = 550  # as in `app.js`
BROKEN = """cells => cells.map(cell => {
    const text = document.createRange();
    text.selectNodeContents(cell);
    return [cell.textContent, new Set([...text.getClientRects()].map(line => line.bottom)).size];
}).filter(([, lines]) => lines > 1)"""
"""Cells whose text has more than one line."""

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    try:
        with chromium() as browser:
            yield browser
    except PartError:
        missing("Chromium", REMEDY)


@pytest.fixture
def rig(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> FleetRig:
    """A device with a config in the bucket, and a firmware."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    rig.put(f"configs/{MAC}.json")
    rig.put(f"assets/{FILE}")
    return rig


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose console stays clean: no error in a script, nothing that the policy has blocked."""
    with closing(browser.new_context()) as context:
        page = context.new_page()
        found: list[str] = []
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("dialog", lambda dialog: found.append(dialog.message))
        page.on("console", lambda said: found.extend([said.text] if "Content Security Policy" in said.text else []))
        yield page
        assert found == []


def log_in(page: Page, host: Host, token: str = ADMIN) -> None:
    """As a person does."""
    page.goto(host.url)
    page.get_by_label("ADMIN_TOKENS").fill(token)
    page.get_by_role("button", name="Log in").click()


def again(rig: FleetRig, port: int, **more: str) -> Host:
    """The next process at the same address, which logs elsewhere."""
    directory = rig.directory / "again"
    directory.mkdir()
    return Host(directory, rig.environment | more, port=port)


def row(page: Page, text: str) -> Locator:
    """The line of a table that has this in it."""
    return page.locator("tbody tr", has_text=text)


def test_an_upload_is_seen_travelling_to_the_device_that_has_it(rig: FleetRig, page: Page) -> None:
    """Without anybody reloading: announced, confirmed, on its way, there."""
    with rig.host() as host:
        eventually(lambda: hears(host))
        log_in(page, host)
        expect(page.get_by_text("Nothing was uploaded yet")).to_be_visible()
        expect(page.get_by_role("status")).to_have_text("Live")
        etag = rig.put(f"assets/{FILE}", b"newer")
        host.post(event(record(f"assets/{FILE}", eTag=etag)))
        expect(row(page, FILE).locator("[data-name=confirmed]")).to_have_text("yes")
        expect(row(page, FILE).locator("[data-name='have it']")).to_have_text("0")
        rig.report("installed", etag=etag)
        expect(row(page, FILE).locator("[data-name='have it']")).to_have_text("1")
        row(page, FILE).get_by_role("link").click()
        expect(row(page, MAC)).to_contain_text("has it")
        rig.report("failed", etag=etag, reason="flash is full")
        expect(row(page, MAC)).to_contain_text("flash is full")


def test_a_device_is_found_and_opened(rig: FleetRig, page: Page) -> None:
    """By a part of its MAC; what it said stands there as text, whatever it is."""
    with rig.host(FLEET_ACCEPT_UNKNOWN="on") as host:
        eventually(lambda: hears(host))
        rig.report("failed", OTHER, reason=EVIL, version=EVIL, agent=EVIL)
        rig.report("installed", MAC, EVIL)
        log_in(page, host)
        page.get_by_role("link", name="Devices").click()
        expect(row(page, OTHER)).to_be_visible()
        page.get_by_label("Search").fill("e5-f7")
        expect(row(page, MAC)).to_have_count(0)
        expect(page.get_by_label("Search")).to_be_focused()
        row(page, OTHER).get_by_role("link", name=OTHER).click()
        expect(page.get_by_role("heading", level=2)).to_have_text(OTHER)
        expect(page.get_by_text(EVIL).first).to_be_visible()
        page.goto(f"{host.url}/#/devices/{MAC}")
        expect(page.get_by_text(EVIL).first).to_be_visible()
        assert page.locator("img").count() == 0


def test_the_broker_is_tested_before_it_is_stored(rig: FleetRig, page: Page, tmp_path: Path) -> None:
    """One that is not there is named; two editors do not overwrite each other."""
    with Mosquitto(tmp_path / "other") as other, rig.host() as host:
        log_in(page, host)
        page.get_by_role("link", name="Broker").click()
        said = page.locator("#said")
        page.get_by_label("Port").fill(str(free_port()))
        page.get_by_role("button", name="Test").click()
        expect(said).to_have_class("no")
        page.get_by_label("Port").fill(str(other.port))
        page.get_by_role("button", name="Test").click()
        expect(said).to_have_class("yes")
        page.get_by_role("button", name="Store").click()
        expect(said).to_contain_text("Stored")
        config = host.http.get("/api/v1/integrations/mqtt/config", headers={"Authorization": f"Bearer {ADMIN}"}).json()
        assert (config["broker_port"], config["source"]) == (other.port, "database")
        kept = ("broker_host", "topic_prefix", "discovery_prefix", "qos", "enabled")
        body = {name: config[name] for name in kept} | {"broker_port": rig.broker.port}
        headers = {"Authorization": f"Bearer {ADMIN}", "If-Match": "*"}
        assert host.http.put("/api/v1/integrations/mqtt/config", json=body, headers=headers).status_code == 200
        page.get_by_role("button", name="Store").click()
        expect(said).to_contain_text("changed meanwhile")


def test_a_wrong_token_and_one_that_ends_lead_back_to_the_door(rig: FleetRig, page: Page) -> None:
    """With words; the token is in no address and no cookie."""
    with rig.host() as host:
        log_in(page, host, "wrong-token-0123456789")
        expect(page.get_by_text("That token is not valid.")).to_be_visible()
        expect(page.get_by_role("link", name="Files")).to_be_hidden()
        expect(page.get_by_role("button", name="Log out")).to_be_hidden()
        page.get_by_label("ADMIN_TOKENS").fill(ADMIN)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("heading", name="Uploads")).to_be_visible()
        assert ADMIN not in page.url
        assert page.context.cookies() == []
        port = host.port
    with again(rig, port, ADMIN_TOKENS="another-token-0123456789"):
        expect(page.get_by_text("The token is not valid any more.")).to_be_visible()
        expect(page.get_by_label("ADMIN_TOKENS")).to_be_focused()


def test_why_the_door_is_shown_is_said_until_somebody_comes_in(rig: FleetRig, page: Page) -> None:
    """Also when something had changed just before, and would have been shown in a moment."""
    answers = iter(("id: 1\nevent: upload\ndata: {}\n\n", None))

    def stream(route: Route) -> None:
        body = next(answers)
        route.fulfill(status=401) if body is None else route.fulfill(content_type="text/event-stream", body=body)

    page.route("**/api/v1/stream", stream)
    with rig.host() as host:
        log_in(page, host)
        words = page.get_by_text("The token is not valid any more.")
        expect(words).to_be_visible()
        page.wait_for_timeout(2 * GATHER_MILLISECONDS)
        expect(words).to_be_visible()


def test_what_the_doctor_finds_is_read_there(rig: FleetRig, page: Page) -> None:
    """Asked for with one click; what is wrong is named first, with its remedy."""
    with rig.host() as host:
        log_in(page, host)
        page.get_by_role("link", name="Doctor").click()
        expect(page.get_by_text("Nobody has asked since the host was started.")).to_be_visible()
        page.get_by_role("button", name="Look at everything").click()
        expect(page.get_by_text("Looking at everything")).to_be_visible()
        expect(page.locator("#said")).to_contain_text("First mend: notification rules")
        expect(row(page, "notification rules").first).to_contain_text("bucketbell connect")
        expect(row(page, "region").first).to_contain_text("well")
        assert page.locator("tbody td").first.inner_text() == "wrong"
        assert page.locator("td.word").evaluate_all(BROKEN) == []
        page.get_by_role("link", name="Files").click()
        page.get_by_role("link", name="Doctor").click()
        expect(page.locator("#said")).to_contain_text("First mend")


def test_a_host_that_restarts_is_waited_for(rig: FleetRig, page: Page) -> None:
    """What is shown stays, the page says what is wrong, and goes on by itself."""
    with rig.host() as host:
        log_in(page, host)
        page.get_by_role("link", name="Files").click()
        expect(row(page, FILE)).to_be_visible()
        port = host.port
        host.child.kill()
        expect(page.get_by_role("status")).to_contain_text("does not answer")
        expect(row(page, FILE)).to_be_visible()
    rig.put("assets/esp32/fw-9.bin")
    with again(rig, port):
        expect(page.get_by_role("status")).to_have_text("Live")
        expect(row(page, "fw-9.bin")).to_be_visible()


def test_it_is_used_by_keyboard_alone_on_a_narrow_screen_in_the_dark(rig: FleetRig, browser: Browser) -> None:
    """360 px wide: nothing sticks out; light on dark."""
    with rig.host() as host, closing(browser.new_context(color_scheme="dark")) as context:
        eventually(lambda: hears(host))
        rig.report("downloading", progress=40)
        page = context.new_page()
        page.set_viewport_size({"width": NARROW, "height": 640})
        page.goto(host.url)
        expect(page.get_by_label("ADMIN_TOKENS")).to_be_focused()
        page.keyboard.type(ADMIN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Uploads")).to_be_visible()
        for name in ("Files", "Devices", "Broker", "Doctor", "Uploads"):
            link = page.get_by_role("link", name=name, exact=True)
            for _ in range(ALL_THAT_TAB_REACHES):
                if link.evaluate("element => element === document.activeElement"):
                    break
                page.keyboard.press("Tab")
            else:
                raise AssertionError(f"{name} cannot be reached")
            page.keyboard.press("Enter")
            expect(page.get_by_role("heading", name=name, level=2)).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
            page.keyboard.press("Home")
            page.evaluate("document.activeElement.blur()")
        ground, ink = (
            page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).map(Number)")
            for name in ("backgroundColor", "color")
        )
        assert sum(ground) < 200 < sum(ink)


def test_ten_thousand_devices_are_shown_by_the_page(rig: FleetRig, page: Page) -> None:
    """The first hundred at once, the next on demand, one of them by a search."""
    upgrade(rig.url)
    store = FleetStore(Database(rig.url))
    macs = [f"a1-b2-c3-00-{number >> 8:02x}-{number & 255:02x}" for number in range(10_000)]
    now = datetime.now(UTC)
    store.know(macs, "config", since=now)
    for index in range(0, len(macs), AT_ONCE):
        store.record(
            [DeviceReport(mac, FILE, "installed", "e") for mac in macs[index : index + AT_ONCE]], arrived_at=now
        )
    with rig.host() as host:
        log_in(page, host)
        page.get_by_role("link", name="Devices").click()
        expect(page.locator("tbody tr")).to_have_count(100)
        page.get_by_role("button", name="Show more").click()
        expect(page.locator("tbody tr")).to_have_count(200)
        mine = row(page, macs[150]).get_by_role("link", name=macs[150])
        mine.focus()
        eventually(lambda: hears(host))
        rig.report("failed", macs[0], etag=rig.etag(f"assets/{FILE}"))
        expect(row(page, macs[0])).to_contain_text("failed")  # it was shown again: no shorter, and one can go on
        expect(page.locator("tbody tr")).to_have_count(200)
        expect(mine).to_be_focused()
        page.get_by_label("Search").fill(macs[9_999])
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_role("link", name="Files").click()
        expect(row(page, FILE).locator("[data-name=should]")).to_have_text("10000")


def test_without_an_administrator_there_is_no_page(rig: FleetRig) -> None:
    """Nobody could log in."""
    with rig.host(ADMIN_TOKENS="") as host:
        for path in ("/", "/console/app.js"):
            assert host.http.get(path).status_code == 404
    with rig.host() as host:
        answer = host.http.get("/")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert json.dumps(ADMIN) not in answer.text
