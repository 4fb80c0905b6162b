"""The alert rules and the dashboard, in a real Prometheus that watches a real host, MinIO and their faults."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from paho.mqtt import publish
from samtranslator.yaml_helper import yaml_parse  # type: ignore[import-untyped]  # it has no types

from functions.stored.database import Database
from functions.stored.fleet import FleetStore
from infra.local.certificates import make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stores import Minio
from infra.migrations.runner import upgrade
from infra.subscriber import Subscriber
from tests.conftest import missing
from tests.databases import new_sqlite
from tests.fleet import MAC
from tests.hosts import MAC_KEY, TOPICS, Host, event, eventually, record, upload
from tests.stored import SHORT, storing
from tests.timing import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "infra/deploy/prometheus/bucketbell.rules.yml"
CONFIG = RULES.with_name("prometheus.yml")
RULE_TESTS = RULES.with_name("bucketbell.test.yml")
DASHBOARD = ROOT / "infra/deploy/grafana/bucketbell.json"
BUCKET = "devices"
SERIES = re.compile(r"\b(?:mqtt|events|strangers|sweep|database|minio|process|fleet|device|file)_\w+|\bup\b")
HISTOGRAMS = {"mqtt_publish_duration_seconds", "file_rollout_seconds"}
FORBIDDEN = f"topic deny {TOPICS[0]}\ntopic readwrite #\n"


def alerts() -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in yaml_parse(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """Every panel of the dashboard that shows something."""
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def program(name: str) -> str:
    """Debian's Prometheus, or no test of it."""
    return shutil.which(name) or missing(name, "install the package `prometheus`")


class Prometheus(Process):
    """Prometheus with our configuration and rules, that asks one host and one MinIO, and every second."""

    def __init__(self, directory: Path, host: Host, store: Minio) -> None:
        self.port = free_port()
        self._config = directory / CONFIG.name
        self._changes = {
            "'localhost:8080'": f"'127.0.0.1:{host.port}'",
            "'localhost:9000'": f"'127.0.0.1:{store.port}'",
            "15s": "1s",
            f"[{RULES.name}]": f"[{RULES}]",
        }
        arguments = [f"--config.file={self._config}", f"--storage.tsdb.path={directory / 'data'}"]
        arguments.append(f"--web.listen-address=127.0.0.1:{self.port}")
        super().__init__("prometheus", [program("prometheus"), *arguments], directory)

    def prepare(self) -> None:
        """Writes the configuration."""
        text = CONFIG.read_text(encoding="utf-8")
        for old, new in self._changes.items():
            assert old in text, old
            text = text.replace(old, new)
        self._config.write_text(text, encoding="utf-8")

    def is_ready(self) -> bool:
        """Whether it says so."""
        try:
            return self.ask("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str, **parameters: str) -> httpx.Response:
        """What its HTTP API answers."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.get(url, params=parameters, timeout=PATIENCE_SECONDS, trust_env=False)

    def values(self, expression: str) -> list[float]:
        """What an expression gives now, without what is no number."""
        answer = self.ask("/api/v1/query", query=expression)
        assert answer.status_code == 200, answer.text
        found = (float(sample["value"][1]) for sample in answer.json()["data"]["result"])
        return [value for value in found if math.isfinite(value)]


@pytest.fixture(scope="module")
def watched(
    tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path, minio_binary: Path
) -> Iterator[Prometheus]:
    """A Prometheus that has seen something of each kind happen: to a host with everything, and to a MinIO."""
    del mosquitto_binary, minio_binary
    directory = tmp_path_factory.mktemp("watched")
    files = make_certificates(directory / "certificates")
    sure = {"ENABLE": "on", "ENDPOINT": f"http://127.0.0.1:{free_port()}", "QUEUE_DIR": str(directory / "queue")}
    sure |= {"QUEUE_LIMIT": "1"}
    targets = {f"MINIO_NOTIFY_WEBHOOK_{name}_BUCKETBELLSURE": value for name, value in sure.items()}
    with (
        Minio(directory / "minio", environment=targets | {"MINIO_PROMETHEUS_AUTH_TYPE": "public"}) as store,
        Mosquitto(directory / "mosquitto", certificates=files, acl=FORBIDDEN) as broker,
    ):
        s3 = store.client()
        s3.create_bucket(Bucket=BUCKET)
        rule = {"QueueArn": f"arn:minio:sqs:{store.region}:BUCKETBELLSURE:webhook", "Events": ["s3:ObjectCreated:*"]}
        s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": [rule]}
        )
        known = storing(
            new_sqlite(directory),
            broker.url,
            MQTT_CA_FILE=str(files.ca_file),
            MQTT_PUBLISH_TIMEOUT_SECONDS="1",
            EVENT_RETRY_SECONDS="1",
            BUCKET=BUCKET,
            AWS_ENDPOINT_URL_S3=store.endpoint_url,
            AWS_ACCESS_KEY_ID=store.access_key,
            AWS_SECRET_ACCESS_KEY=store.secret_key,
            AWS_REGION=store.region,
            SWEEP_SECONDS="1",
            SWEEP_GRACE_SECONDS="0",
        )
        upgrade(known["DATABASE_URL"])
        FleetStore(Database(known["DATABASE_URL"])).know([MAC], "token", since=datetime.now(UTC))
        with Host(directory, known, patch=SHORT) as host, Prometheus(directory / "prometheus", host, store) as watching:
            eventually(lambda: len(watching.values("up == 1")) == 2)
            eventually(lambda: watching.values("database_up == 1"))  # all is there, and still 0
            eventually(lambda: watching.values("fleet_devices"))
            for number in range(3):  # one fits into the queue, and nobody takes it
                s3.put_object(Bucket=BUCKET, Key=f"assets/lost-{number}", Body=b"x")
            _make_everything_happen(host, broker)
            yield watching


def _make_everything_happen(host: Host, broker: Mosquitto) -> None:
    assert host.post(upload("assets/nobody-listens")).status_code == 200
    with Subscriber(broker.url, ("#",), ca_file=broker.certificates.ca_file if broker.certificates else None):
        for door in ("/events", "/events/fast"):
            assert host.post(upload("assets/heard"), door).status_code < 300
    reports = ({"filename": "heard", "state": "installed", "etag": "4d22"}, {"state": "installed"})
    publish.multiple(
        [(f"iotsupport/devices/{MAC}/report", json.dumps(report), 1, False) for report in reports],
        hostname="127.0.0.1",
        port=broker.port,
        tls=None if broker.certificates is None else {"ca_certs": str(broker.certificates.ca_file)},
    )
    assert host.post(upload(), token="wrong").status_code == 401
    assert host.http.get("/manifest").status_code == 401
    refused = event(record(MAC_KEY))
    eventually(lambda: "gave_up" in host.post(refused).text)
    broker.restart()
    eventually(lambda: host.http.get("/readyz").status_code == 200)


# The rules.


def test_the_rules_fire_and_stay_silent() -> None:
    """`promtool` finds no fault in them, and each of them does both in its unit tests."""
    promtool = program("promtool")
    for arguments in (["check", "config", str(CONFIG)], ["test", "rules", str(RULE_TESTS)]):
        done = subprocess.run(
            [promtool, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    tried = [
        (one["alertname"], bool(one["exp_alerts"]))
        for test in yaml_parse(RULE_TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
    ]
    assert set(tried) == {(alert["alert"], fires) for alert in alerts() for fires in (True, False)}


def test_an_alert_says_what_to_do_and_where_to_read_on() -> None:
    """Each has its row in docs/watching.md, and names a page and heading that are there."""
    page = (ROOT / "docs/watching.md").read_text()
    for alert in alerts():
        assert f"`{alert['alert']}`" in page
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description", "runbook"} == set(alert["annotations"])
        file, _, heading = alert["annotations"]["runbook"].partition("#")
        titles = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(), re.MULTILINE)
        assert not heading or heading in [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]


def test_the_rules_ask_for_what_is_there(watched: Prometheus) -> None:
    """Prometheus evaluates them all without a fault, and every metric that they name has a value."""
    eventually(
        lambda: all(
            rule["health"] == "ok"
            for group in watched.ask("/api/v1/rules").json()["data"]["groups"]
            for rule in group["rules"]
        )
    )
    named = {name for alert in alerts() for name in SERIES.findall(alert["expr"])}
    assert len(named) > 8
    assert _without_values(watched, named) == set()


# The dashboard.


def test_every_panel_shows_something(watched: Prometheus) -> None:
    """Each expression gives a number above 0 once the thing that it is about has happened."""
    expressions = {target["expr"] for panel in panels() for target in panel["targets"]}
    named = {name.removesuffix("_bucket") for expression in expressions for name in SERIES.findall(expression)}
    unseen = _without_values(watched, {f"{name}_count" if name in HISTOGRAMS else name for name in named})
    assert unseen == set()
    asked = {one for one in expressions if not _not_here(watched, one)}
    assert len(asked) >= len(expressions) - len([one for one in expressions if "sweep_" in one])
    filled = {one.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*") for one in asked}
    assert not [one for one in filled if "$" in one]
    with suppress(TimeoutError):  # the next line says what it is
        eventually(lambda: not _at_zero(watched, filled))
    assert _at_zero(watched, filled) == []


def test_the_dashboard_can_be_imported() -> None:
    """Ids are unique, panels do not overlap, each says what it means, and the data source is the reader's choice."""
    document = json.loads(DASHBOARD.read_text())
    assert next(iter(document)) == "description"
    everything = document["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken: set[tuple[int, int]] = set()
    for panel in everything:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["description"].endswith(".")
        assert {one["datasource"]["uid"] for one in (panel, *panel["targets"])} == {"${datasource}"}
    assert {one["name"] for one in document["templating"]["list"]} == {"datasource", "job", "instance"}


def _without_values(watching: Prometheus, names: set[str]) -> set[str]:
    return {name for name in names if not _not_here(watching, name) and not watching.values(name)}


def _at_zero(watching: Prometheus, expressions: set[str]) -> list[str]:
    """Those without a value above 0; `sweep_waiting` is above 0 between two sweeps only, if too much is to be told."""
    least = {one: -1.0 if "sweep_waiting" in one else 0.0 for one in expressions}
    return [one for one in expressions if max(watching.values(one), default=-1.0) <= least[one]]


def _not_here(watching: Prometheus, expression: str) -> bool:
    """Whether it is about the sweep, and this host has none."""
    return "sweep_" in expression and not watching.values('{__name__=~"sweep_.*"}')
