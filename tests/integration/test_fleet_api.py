"""Who has which file, as the administration's API tells it: a real bucket, both databases."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from openapi_schema_validator import OAS31Validator

from functions.admin import openapi
from functions.admin.api import router
from functions.admin.fleet import FleetAnswers
from functions.admin.operations import Administration
from functions.admin.uploads import Uploads
from functions.events.routes import Routes
from functions.fleet.reports import DeviceReport
from functions.integration import NoLocalPublisher
from functions.s3.objects import Objects
from functions.settings import load
from functions.stored.database import Database
from functions.stored.fleet import FleetStore
from functions.web.tokens import Keyring
from infra.local.stores import MotoServer
from tests.fleet import KEY
from tests.gateway import Answered, http_event

ADMIN = "admin-token-0123456789"
OLD, NEW = "esp32/fw-1.2.3.bin", "esp32/fw-1.2.4.bin"
MACS = [f"a1-b2-c3-d4-e5-{number:02x}" for number in range(6)]
DOCUMENT = openapi.document()


class Rig:
    """The API over a bucket and a database."""

    def __init__(self, moto: MotoServer, url: str) -> None:
        moto.reset()
        self.s3 = moto.client("s3")
        self.s3.create_bucket(Bucket="devices")
        self.variables = {
            "ADMIN_TOKENS": ADMIN,
            "DATABASE_URL": url,
            "BUCKET": "devices",
            "AWS_ENDPOINT_URL": moto.endpoint_url,
            "AWS_ACCESS_KEY_ID": moto.access_key,
            "AWS_SECRET_ACCESS_KEY": moto.secret_key,
        }
        self.settings = load(self.variables).settings
        self.store = FleetStore(Database(url))
        self.fleet = self.begin()

    def begin(self) -> FleetAnswers:
        """As after a start: nothing is listed yet."""
        objects = Objects(self.settings, "devices", url_ttl_seconds=900)
        fleet = FleetAnswers.of(self.settings, objects)
        assert fleet is not None
        administration = Administration(self.settings, None, NoLocalPublisher())
        self.router = router(administration, Uploads(Routes.of(self.settings)), fleet)
        return fleet

    def begin_again(self) -> None:
        """After a restart."""
        self.fleet.close()
        self.fleet = self.begin()

    def put(self, key: str, body: bytes = b"x") -> str:
        """Upload; return the etag."""
        return str(self.s3.put_object(Bucket="devices", Key=key, Body=body)["ETag"]).strip('"')

    def say(self, mac: str, filename: str, state: Any, etag: str, **more: Any) -> None:  # noqa: ANN401 - of each field its own type
        """Have a device report."""
        report = DeviceReport(mac, filename, state, etag)._replace(**more)
        assert len(self.store.record([report], arrived_at=datetime.now(UTC)).changes) == 1

    def ask(
        self, path: str, method: str = "GET", body: object = None, query: Mapping[str, object] | None = None
    ) -> Answered:
        """One answer, which is as the OpenAPI document says."""
        text = "&".join(f"{name}={quote(str(value))}" for name, value in (query or {}).items())
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        event = http_event(f"/api/v1{path}", method=method, query=text, headers=headers)
        if body is not None:
            event["body"] = json.dumps(body)
        answer = Answered.by(self.router, event)
        route = next(route for route in self.router.routes if route.pattern.fullmatch(f"/api/v1{path}"))
        template = route.path.replace("*", "{filename}")
        promised = DOCUMENT["paths"][template][method.lower()]["responses"][str(answer.status)]
        for content in promised.get("content", {}).values():
            schema = {**content["schema"], "components": DOCUMENT["components"]}
            OAS31Validator(schema).validate(answer.document)
        return answer

    def get(self, path: str, **query: object) -> Any:  # noqa: ANN401 - JSON
        """What is answered with 200."""
        answer = self.ask(path, query=query)
        assert answer.status == 200, answer.body
        return answer.document


@pytest.fixture
def rig(moto: MotoServer, migrated_url: str) -> Iterator[Rig]:
    """Six devices that installed the old firmware; a new one was uploaded."""
    rig = Rig(moto, migrated_url)
    old = rig.put(f"assets/{OLD}")
    rig.store.know(MACS, "token", since=datetime.now(UTC))
    for mac in MACS[:5]:
        rig.say(mac, OLD, "installed", old, version="1.2.3", agent="esp")
    rig.put(f"assets/{NEW}", b"new")
    rig.store.note_presence({MACS[4]: False}, at=datetime.now(UTC))
    yield rig
    rig.fleet.close()


def test_each_device_has_one_standing_with_the_newest_of_its_channel(rig: Rig) -> None:
    """It follows what it installed last; one that never installed anything follows nothing."""
    new = rig.s3.head_object(Bucket="devices", Key=f"assets/{NEW}")["ETag"].strip('"')
    rig.say(MACS[0], NEW, "installed", new)
    rig.say(MACS[1], NEW, "downloading", new, progress=40)
    rig.say(MACS[2], NEW, "failed", new, reason="flash is full")
    found = {one["mac"]: one for one in rig.get("/devices")["devices"]}
    standings = ["has_it", "on_the_way", "failed", "waiting", "offline", None]
    assert [found[mac]["standing"] for mac in MACS] == standings
    assert found[MACS[0]]["target"] == {"filename": NEW, "etag": new, "rule": "channel"}
    assert found[MACS[5]]["target"] is None
    files = {one["filename"]: one for one in rig.get("/files")["files"]}
    assert {name: files[NEW][name] for name in ("should", "current", "channel")} == {
        "should": 5,
        "current": True,
        "channel": "esp32",
    }
    assert [files[NEW][name] for name in standings[:5] if name] == [1, 1, 1, 1, 1]
    assert (files[OLD]["should"], files[OLD]["current"]) == (0, False)
    devices = rig.get(f"/files/{NEW}/devices")["devices"]
    assert [one["standing"] for one in devices] == standings[:5]
    assert devices[2]["reason"] == "flash is full"


def test_a_file_that_was_uploaded_again_is_nobody_s_until_it_is_reported(rig: Rig) -> None:
    """The entity tag tells which content a device has."""
    rig.say(MACS[0], NEW, "installed", rig.put(f"assets/{NEW}", b"newer"))
    rig.put(f"assets/{NEW}", b"newest")
    rig.begin_again()
    (newest,) = [one for one in rig.get("/files")["files"] if one["filename"] == NEW]
    assert (newest["has_it"], newest["waiting"], newest["offline"]) == (0, 4, 1)
    detail = rig.get(f"/devices/{MACS[0]}")
    assert [(one["filename"], one["current"]) for one in detail["files"]] == [(NEW, False), (OLD, True)]
    assert [one["filename"] for one in detail["history"]] == [NEW, OLD]


def test_an_assignment_wins_and_can_be_taken_back(rig: Rig) -> None:
    """Also for a device that never reported; only what is in the bucket can be assigned."""
    for mac in (MACS[0], "ff-ff-ff-ff-ff-ff"):
        answer = rig.ask(f"/devices/{mac.upper()}/assignment", "PUT", {"filename": OLD})
        assert answer.document["target"]["rule"] == "assigned"
    assert rig.get(f"/devices/{MACS[0]}")["standing"] == "has_it"
    assert [one["mac"] for one in rig.get(f"/files/{OLD}/devices")["devices"]] == [MACS[0], "ff-ff-ff-ff-ff-ff"]
    assert rig.ask(f"/devices/{MACS[0]}/assignment", "PUT", {"filename": "nothing.bin"}).status == 422
    assert rig.ask(f"/devices/{MACS[0]}/assignment", "PUT", {"filename": ""}).document["target"]["filename"] == NEW


def test_a_config_is_its_own_device_s(rig: Rig) -> None:
    """Whatever the case of its name in the bucket."""
    etag = rig.put(f"configs/{MACS[0].upper()}.json")
    rig.put("configs/ff-ff-ff-ff-ff-ff.json")
    rig.say(MACS[0], f"{MACS[0]}.json", "installed", etag)
    configs = {one["key"]: one for one in rig.get("/files", search="CONFIGS/")["files"]}
    assert configs[f"configs/{MACS[0].upper()}.json"]["has_it"] == 1
    assert configs["configs/ff-ff-ff-ff-ff-ff.json"]["should"] == 0
    (device,) = rig.get(f"/files/{MACS[0].upper()}.json/devices")["devices"]
    assert (device["mac"], device["standing"]) == (MACS[0], "has_it")


def test_pages_hold_each_device_and_each_file_once(rig: Rig) -> None:
    """With a filter as without one."""
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = rig.get("/devices", limit=2, after=after, state="waiting")
        seen += [one["mac"] for one in page["devices"]]
        after = page["next"]
    assert seen == MACS[:4]
    first = rig.get("/files", limit=1)
    second = rig.get("/files", limit=1, after=first["next"])
    assert [one["filename"] for one in first["files"] + second["files"]] == [NEW, OLD]
    assert second["next"] is None
    assert [one["mac"] for one in rig.get("/devices", search="E5-03")["devices"]] == [MACS[3]]
    assert rig.get("/devices", search="100%")["devices"] == []


def test_a_device_that_is_gone_is_forgotten(rig: Rig) -> None:
    """204, then 404; the numbers go down."""
    assert rig.ask(f"/devices/{MACS[0]}", "DELETE").status == 204
    assert rig.ask(f"/devices/{MACS[0]}", "DELETE").status == 404
    assert rig.ask(f"/devices/{MACS[0]}").status == 404
    assert next(one for one in rig.get("/files")["files"] if one["filename"] == NEW)["should"] == 4


def test_an_upload_s_legs_end_with_the_last_device_that_has_it(rig: Rig) -> None:
    """Of each content by itself."""
    now = datetime.now(UTC)
    legs = {"uploaded_at": now, "rang_at": now, "confirmed_at": None, "size": 3, "filename": NEW}
    rig.store.note_uploads([{"identity": "0" * 32, "object_key": f"assets/{NEW}", "etag": "other", **legs}])
    rig.store.note_uploads([{"identity": "1" * 32, "object_key": f"assets/{NEW}", "etag": "e9", **legs}])
    for mac in MACS[:2]:
        rig.say(mac, NEW, "downloading", "e9")
        rig.say(mac, NEW, "installed", "e9")
    newest, other = rig.get("/uploads")["uploads"]
    assert (newest["id"], newest["has_it"], newest["confirmed_at"]) == ("1" * 32, 2, None)
    assert newest["rang_at"] <= newest["first_at"] <= newest["last_at"]
    assert (other["has_it"], other["first_at"]) == (0, None)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": "1e3"}, {"limit": 1001}, {"state": "eaten"}])
def test_a_page_that_cannot_be_is_refused(rig: Rig, query: dict[str, object]) -> None:
    """422 names the field and what would be right."""
    answer = rig.ask("/devices", query=query)
    assert answer.status == 422
    assert answer.document["errors"][0]["field"] in query


def test_without_a_database_nothing_is_kept(moto: MotoServer, migrated_url: str) -> None:
    """409 says what to set."""
    rig = Rig(moto, migrated_url)
    rig.fleet.close()
    rig.router = router(Administration(rig.settings, None, NoLocalPublisher()), Uploads(Routes.of(rig.settings)))
    answer = rig.ask("/devices")
    assert (answer.status, "DATABASE_URL" in answer.document["detail"]) == (409, True)


def test_a_store_that_is_down_is_said_so(rig: Rig) -> None:
    """503: without the bucket's list nobody knows what is current."""
    rig.s3.delete_object(Bucket="devices", Key=f"assets/{OLD}")
    rig.s3.delete_object(Bucket="devices", Key=f"assets/{NEW}")
    rig.s3.delete_bucket(Bucket="devices")
    answer = rig.ask("/devices")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


def test_on_lambda_a_device_reports_and_an_administrator_sees_it(rig: Rig) -> None:
    """The integration's handler, as API Gateway calls it, with the settings in its environment."""
    token = Keyring.parse([KEY]).mint(MACS[5])
    body = json.dumps({"filename": NEW, "state": "installed"})
    script = f"""
import json, sys
from functions.integration import handler
from tests.gateway import CONTEXT, http_event

def ask(path, token, method="GET", body=""):
    event = http_event(path, method=method, headers={{"Authorization": "Bearer " + token}})
    return handler(event | {{"body": body}}, CONTEXT)

for token in ({token!r}, {ADMIN!r}, "x" * 30):
    print(ask("/report", token, "POST", {body!r})["statusCode"])
print(ask("/api/v1/devices/{MACS[5]}", {ADMIN!r})["body"])
"""
    environment = rig.variables | {"DEVICE_TOKEN_KEYS": KEY, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    *statuses, device = [line for line in done.stdout.splitlines() if not line.startswith('{"level"')]
    assert statuses == ["204", "403", "401"]
    assert (json.loads(device)["source"], json.loads(device)["standing"]) == ("token", "has_it")
