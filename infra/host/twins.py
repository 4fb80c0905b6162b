"""Two doors may tell of one upload with different fields: the second to come gets the identity of the first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from functions.events.dialects import ObjectCreated
from functions.events.routes import Detection, Skip, Upload

if TYPE_CHECKING:
    from functions.events.plan import Step
    from functions.mqtt.message import Message

LIMIT = 5_000
MAX_OF_ONE_SECOND = 16  # uploads to one key: each further one would be compared with all of them


_Told = tuple[bytes, tuple[str, ...]]
"""An upload as it is known so far: its identity, and fields that are "" where nobody has told them."""


class Twins:
    """Bounded in number: doors that share uploads tell of each within a moment."""

    def __init__(self, limit: int = LIMIT) -> None:
        """Begin empty."""
        self._limit = limit
        self._told: OrderedDict[tuple[str, str, str], list[_Told]] = OrderedDict()

    def known(self, step: Step) -> Step:
        """Return `step` under the identity by which its upload is known already, if it is.

        Two records are of one upload where bucket, key and time agree, and no field that both have says otherwise. A
        fraction of a second is such a field: EventBridge tells none.
        """
        record, action = step.record, step.action
        if not isinstance(record, ObjectCreated) or isinstance(action, Skip) or not record.event_time:
            return step
        second, _, fraction = record.event_time.removesuffix("Z").partition(".")
        fields = record.version, record.etag, record.sequencer, fraction
        told = self._told.setdefault((record.bucket, record.object_key, second), [])
        for at, (identity, known) in enumerate(told):
            if all(mine == its or not mine or not its for mine, its in zip(fields, known, strict=True)):
                told[at] = identity, tuple(its or mine for mine, its in zip(fields, known, strict=True))
                return step if identity == action.identity else step._replace(action=renamed(action, identity))
        told.append((action.identity, fields))
        del told[:-MAX_OF_ONE_SECOND]
        if len(self._told) > self._limit:
            self._told.popitem(last=False)
        return step


def renamed(action: Upload | Detection, identity: bytes) -> Upload | Detection:
    """The same under another identity."""
    if isinstance(action, Detection):
        return replace(action, identity=identity, user_properties=_with_id(action.user_properties, identity))

    def new(message: Message) -> Message:
        return replace(message, user_properties=_with_id(message.user_properties, identity))

    own = None if action.own is None else new(action.own)
    return replace(action, identity=identity, message=new(action.message), own=own)


def _with_id(pairs: tuple[tuple[str, str], ...], identity: bytes) -> tuple[tuple[str, str], ...]:
    return tuple((name, identity.hex() if name == "id" else value) for name, value in pairs)
