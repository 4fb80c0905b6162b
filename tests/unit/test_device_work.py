from __future__ import annotations

from pathlib import Path

import pytest

from infra.device.loop import Device
from infra.device.names import Name
from infra.device.server import DownloadServer, Listed, ServerManifest, Ticket
from infra.device.store import DeviceStore, Version
from infra.device.trouble import FetchError
from infra.http_client import Web

MAC = "a1-b2-c3-d4-e5-f6"


class Moment(float):
    """A time that counts how often times were compared."""

    compared = 0

    def __add__(self, other: float) -> Moment:
        return Moment(float(self) + other)

    def __lt__(self, other: float) -> bool:
        Moment.compared += 1
        return float(self) < other

    def __gt__(self, other: float) -> bool:
        Moment.compared += 1
        return float(self) > other


class Shelf(DownloadServer):
    """Lists that many files, and has none of them any more."""

    def __init__(self, files: int) -> None:
        self.files = files
        self.asked = 0

    def manifest(self) -> ServerManifest:
        """All files."""
        return ServerManifest(tuple(Listed("asset", str(number), Version("e", 1)) for number in range(self.files)), 0)

    def renew_token(self) -> str | None:
        """It is not time."""

    def locate(self, name: Name) -> Ticket:
        """Nothing."""
        self.asked += 1
        raise FetchError("gone", f"no {name.path}")


def comparisons(directory: Path, files: int) -> int:
    """How many times are compared while so many new files are worked off."""
    store, shelf = DeviceStore(directory), Shelf(files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "drop", lambda _name: None)  # its fsync says nothing here
        device = Device(
            MAC,
            {},
            web=Web(),
            server=shelf,
            store=store,
            report=lambda *_, **__: None,
            clock=lambda: Moment(0.0),
            uniform=lambda low, _high: low,
        )
        Moment.compared = 0
        assert device.run(once=True)
    store.close()
    assert shelf.asked == files
    return Moment.compared


def test_the_next_job_is_found_without_a_search(tmp_path: Path) -> None:
    """Twenty times the files are not four hundred times the work."""
    few, many = comparisons(tmp_path / "few", 100), comparisons(tmp_path / "many", 2000)
    assert many < 20 * few * 3
