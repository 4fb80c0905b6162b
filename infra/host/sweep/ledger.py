"""What the bell and the sweep tell each other, by key: what is on its way, what rang, what was given up."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from functions.events.dialects import ObjectCreated
from functions.events.routes import Detection, Skip
from functions.stored.ring import Ring, is_repeat
from infra.host.twins import renamed

if TYPE_CHECKING:
    from functions.events.plan import Step

SWEEP = "sweep"
"""The sweep's name among the sources of events."""
MAX_KEYS = 10_000

K = TypeVar("K")
V = TypeVar("V")


class Ledger:
    """Bounded in number. Belongs to the event loop."""

    def __init__(self, rang: Callable[[Ring], object]) -> None:
        """`rang` records what was announced, and may not block."""
        self.door_has_spoken = False
        """Whether any event has come from the store."""
        self._rang = rang
        self._on_way: dict[str, int] = {}
        self._heard: set[str] | None = None
        self._swept: OrderedDict[str, list[Ring]] = OrderedDict()
        self._aliases: OrderedDict[bytes, bytes] = OrderedDict()
        self._given_up: OrderedDict[str, Ring] = OrderedDict()
        self._cameras: OrderedDict[str, int] = OrderedDict()

    # The bell's side.

    def known(self, step: Step) -> Step:
        """Return what a door asks for under the identity of the sweep's message, if that has told of the same upload.

        Each message of the sweep takes one event of a door, however often that event comes.
        """
        self.door_has_spoken = True
        record, action = step.record, step.action
        if not isinstance(record, ObjectCreated) or isinstance(action, Skip) or record.modified:
            return step  # the last: its identity is the same already
        identity = self._aliases.get(action.identity)
        if identity is None and (swept := self._swept.get(record.object_key)):
            told = _milliseconds(record)
            found = next((ring for ring in swept if is_repeat(ring, record.etag, told)), None)
            if found is not None:
                swept.remove(found)
                identity = found.identity
                _put(self._aliases, action.identity, identity)
        return step if identity is None else step._replace(action=renamed(action, identity))

    def took_off(self, step: Step, source: str) -> None:
        """Note that it is on its way."""
        record, action = step.record, step.action
        if isinstance(record, ObjectCreated) and not isinstance(action, Skip):
            self._on_way[record.object_key] = self._on_way.get(record.object_key, 0) + 1
            if source == SWEEP:
                rings = self._swept.get(record.object_key, [])
                ring = _ring(record, action.identity)
                _put(self._swept, record.object_key, [one for one in rings if one != ring] + [ring])

    def landed(self, step: Step, *, is_settled: bool) -> None:
        """Note that it is not on its way any more; `is_settled`: nobody shall announce it again."""
        record, action = step.record, step.action
        if not isinstance(record, ObjectCreated):
            return
        key = record.object_key
        others = self._on_way.pop(key, 1) - 1
        if others > 0:
            self._on_way[key] = others
        if not is_settled:
            return
        ring = _ring(record, b"" if isinstance(action, Skip) else action.identity)
        if self._heard is not None:
            self._heard.add(key)
        self._given_up.pop(key, None)
        if isinstance(action, Detection):
            _put(self._cameras, action.camera_id, max(ring.modified, self._cameras.get(action.camera_id, 0)))
        self._rang(ring)

    def gave_up(self, step: Step) -> None:
        """Note that it will be announced when the cause ends, unless this process ends before."""
        record, action = step.record, step.action
        if isinstance(record, ObjectCreated) and not isinstance(action, Skip):
            _put(self._given_up, record.object_key, _ring(record, action.identity))

    # The sweep's side.

    def listen(self) -> None:
        """Hear what rings from now on, until the next time or `rest`."""
        self._heard = set()

    def rest(self) -> None:
        """Hear no more: much may ring until the next sweep."""
        self._heard = None

    def is_busy(self, key: str) -> bool:
        """Whether an upload to this key is on its way, or was announced since `listen`."""
        return key in self._on_way or (self._heard is not None and key in self._heard)

    def given_up(self, key: str) -> tuple[Ring, ...]:
        """What of this key is left to the end of what it failed for."""
        ring = self._given_up.get(key)
        return () if ring is None else (ring,)

    def latest(self, camera_id: str) -> int:
        """When the camera's latest event was uploaded that was announced, in ms since 1970; 0 where none is known."""
        return self._cameras.get(camera_id, 0)


def _ring(record: ObjectCreated, identity: bytes) -> Ring:
    modified = record.modified or _milliseconds(record)
    return Ring(record.object_key, record.etag, modified, bool(record.modified), identity)


def _milliseconds(record: ObjectCreated) -> int:
    try:
        return int(datetime.fromisoformat(record.event_time).timestamp() * 1000)
    except (ValueError, OverflowError):  # no sender that is known
        return int(time.time() * 1000)


def _put(table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_KEYS:
        table.popitem(last=False)
