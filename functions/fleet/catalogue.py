"""The bucket's files as they are now, as the fleet's answers need them: listed now and then, not for each question."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from functions.events.names import is_asset_path, is_config_name
from functions.fleet.channels import newest

if TYPE_CHECKING:
    from datetime import datetime

    from functions.s3.objects import ObjectInfo, Page

KEPT_SECONDS = 30.0
"""A file that was removed is shown for so long. One that was uploaded is listed at once: see `forget`."""
PAUSE_SECONDS = 1.0  # between two listings, whatever is uploaded meanwhile


class Lists(Protocol):
    """What is needed of the bucket; see `functions.s3.objects`."""

    def list_page(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> Page:
        """One page of objects. Raises StorageError."""


@dataclass(frozen=True, slots=True)
class Files:
    """All files that devices may have, at one moment. Assets are by path, configs by their device's MAC."""

    assets: Mapping[str, ObjectInfo] = field(default_factory=dict)
    configs: Mapping[str, ObjectInfo] = field(default_factory=dict)
    current: Mapping[str, str] = field(default_factory=dict)
    """The newest asset of each stem."""
    by_age: Sequence[ObjectInfo] = ()
    """Both kinds, newest first."""

    def etag(self, filename: str) -> str:
        """That of an asset, or of a config by its name in lower case; "" where there is no such file."""
        found = self.assets.get(filename)
        if found is None and is_config_name(filename):
            found = self.configs.get(filename.removesuffix(".json"))
        return "" if found is None else found.etag

    def behind(self, after: str) -> Sequence[ObjectInfo]:
        """The files behind that of the key `after`, newest first; all of them where it is "" or gone."""
        return self.by_age[next((index for index, one in enumerate(self.by_age, 1) if one.object_key == after), 0) :]


class Catalogue:
    """Thread-safe; a call may block for as long as the store takes to list the bucket."""

    def __init__(
        self, objects: Lists, *, configs_prefix: str, assets_prefix: str, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Nothing is listed yet."""
        self._objects = objects
        self._configs_prefix, self._assets_prefix = configs_prefix, assets_prefix
        self._now = now
        self._lock = threading.Lock()
        self._files = Files()
        self._listed_at: float | None = None
        self._is_stale = True

    def forget(self) -> None:
        """Have the bucket listed for the next question: something was uploaded."""
        self._is_stale = True

    def files(self, kept_seconds: float = KEPT_SECONDS) -> Files:
        """All files, as they were at most so long ago. Raises StorageError."""
        with self._lock:  # who comes while another lists waits for the same list
            age = None if self._listed_at is None else self._now() - self._listed_at
            if age is None or age > kept_seconds or (self._is_stale and age > PAUSE_SECONDS):
                self._is_stale = False
                self._files = self._listed()
                self._listed_at = self._now()
            return self._files

    def filename(self, info: ObjectInfo) -> str:
        """What the message calls a file."""
        is_asset = info.object_key.startswith(self._assets_prefix)
        return info.object_key.removeprefix(self._assets_prefix if is_asset else self._configs_prefix)

    def _listed(self) -> Files:
        assets = {name: info for name, info in self._below(self._assets_prefix) if is_asset_path(name)}
        configs = {
            name.lower().removesuffix(".json"): info
            for name, info in self._below(self._configs_prefix)
            if is_config_name(name)
        }
        by_age = sorted((*assets.values(), *configs.values()), key=_age, reverse=True)
        current = newest((name, info.last_modified) for name, info in assets.items())
        return Files(assets, configs, current, by_age)

    def _below(self, prefix: str) -> list[tuple[str, ObjectInfo]]:
        found: list[tuple[str, ObjectInfo]] = []
        start_after = ""
        while True:
            page = self._objects.list_page(prefix, start_after=start_after)
            found += [(one.object_key.removeprefix(prefix), one) for one in page.objects]
            start_after = page.next_start_after
            if not start_after:
                return found


def _age(info: ObjectInfo) -> tuple[datetime, str]:
    """Of files of one second the last name counts as the newest, as in `channels.newest`."""
    return info.last_modified, info.object_key
