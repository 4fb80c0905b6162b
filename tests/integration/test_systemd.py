"""The systemd unit: without a fault, with few rights; and what the host says to systemd."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from functions.settings import Settings
from tests.conftest import missing
from tests.hosts import Host, environment
from tests.timing import PATIENCE_SECONDS

FOLDER = Path(__file__).parents[2] / "infra/deploy/systemd"
MAX_EXPOSURE = 2.0
ASK_SECONDS = 60.0


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit, as if what it starts were installed where it says."""
    if shutil.which("systemd-analyze") is None:
        missing("systemd-analyze", "install the package `systemd`")
    text = (FOLDER / "bucketbell.service").read_text()
    assert text.count("=/opt/bucketbell/bin/bucketbell ") == 1
    copy = tmp_path / "bucketbell.service"
    copy.write_text(text.replace("/opt/bucketbell/bin/bucketbell", str(Path(sys.executable).with_name("bucketbell"))))
    return copy


def analysed(unit: Path, *words: str) -> str:
    """What `systemd-analyze` says of a unit."""
    command = [str(shutil.which("systemd-analyze")), *words, str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    return done.stdout + done.stderr


def test_the_unit_has_no_fault(unit: Path) -> None:
    """Nothing is found to say of it; where there is something, it is said."""
    verify = ("verify", "--man=no", "--recursive-errors=no")
    assert analysed(unit, *verify) == ""
    unit.write_text(unit.read_text().replace("DynamicUser=yes", "DynamicUsr=yes"))
    assert "DynamicUsr" in analysed(unit, *verify)


def test_the_unit_may_do_little(unit: Path) -> None:
    """Its exposure, by systemd's own measure, from 0 (none) to 10."""
    told = analysed(unit, "security", "--offline=true", "--no-pager")
    exposure = re.search(r"exposure level for bucketbell\.service: ([\d.]+)", told)
    assert exposure is not None, told
    assert float(exposure[1]) <= MAX_EXPOSURE


def test_the_example_names_settings_that_exist() -> None:
    """Each line of the environment file, switched on or not, and each secret that its comments name."""
    text = (FOLDER / "bucketbell.env").read_text()
    named = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", text, re.MULTILINE))
    assert named >= {"MQTT_URL", "LISTEN_PORT", "DATABASE_URL"}
    listening = {"LISTEN_ADDRESS", "LISTEN_PORT"}
    assert listening <= set(re.findall(r"\b([A-Z_]+)=", (FOLDER / "bucketbell.service").read_text()))
    words = set(re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)+\b", text))
    assert words - listening <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("is_abstract", [False, True], ids=["a file", "an abstract name"])
def test_systemd_hears_how_the_host_is(tmp_path: Path, *, is_abstract: bool) -> None:
    """Ready when it listens, alive again and again, stopping when asked; and the journal gets each line's priority."""
    address = f"@bucketbell-{tmp_path.name}-{id(tmp_path)}" if is_abstract else str(tmp_path / "notify")
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    (secrets / "bucketbell_WEBHOOK_TOKENS").write_text("t0ken-of-systemd-alone\n")
    variables = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000", "SECRETS_DIR": str(secrets)}
    variables["MQTT_URL"] = "mqtt://127.0.0.1:1"  # nobody listens there, which does not keep the host from its work
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0", 1))
        systemd.settimeout(PATIENCE_SECONDS)
        host = Host(tmp_path, variables, ready=False)
        host.log_file.touch()
        journal = host.log_file.stat()
        host.environment["JOURNAL_STREAM"] = f"{journal.st_dev}:{journal.st_ino}"
        with host:
            assert systemd.recv(100) == b"READY=1"
            assert host.post(b"{}", token="wrong").status_code == 401
            assert host.post(b"{}", token="t0ken-of-systemd-alone").status_code == 200
            assert [systemd.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            host.stop()
            left = []
            while b"STOPPING=1" not in left:
                left.append(systemd.recv(100))
    lines = [re.fullmatch(r"<(\d)>({.*})", line) for line in host.log.splitlines()]
    told = {json.loads(line[2])["message"]: (line[1], json.loads(line[2])["level"]) for line in lines if line}
    assert None not in lines
    assert told["listening"] == ("6", "INFO")
    assert told["malformed event"] == ("3", "ERROR")
    assert ("4", "WARNING") in told.values()


def test_nobody_else_sees_priorities(tmp_path: Path) -> None:
    """A child of a service whose output goes elsewhere has the service's variables, too."""
    with Host(tmp_path, environment(None) | {"JOURNAL_STREAM": "1:1"}, ready=False) as host:
        assert host.log.startswith("{")
