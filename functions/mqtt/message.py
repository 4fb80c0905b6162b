"""Pure: a message, as it is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

CONTENT_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Message:
    """One message to publish."""

    topic: str
    payload: bytes
    user_properties: tuple[tuple[str, str], ...] = ()
    """MQTT 5 user properties, in order."""
    qos: int | None = None
    """None: the broker settings' own. A broker that grants less gets less."""
    retain: bool = False
    label: str = ""
    """What metrics call the topic, where there are many of them: `camera/+/event`. "": the topic itself."""

    @property
    def metric_topic(self) -> str:
        """The topic as metrics name it: one of a few."""
        return self.label or self.topic

    @property
    def time(self) -> str:
        """When that happened of which it tells (the `time` of CloudEvents), "" where it does not say."""
        return next((value for name, value in self.user_properties if name == "time"), "")


def newest_of_each(messages: Sequence[Message]) -> dict[tuple[str, bytes], Message]:
    """Fold identical messages of one batch into the newest event's: devices would do the same work twice."""
    newest: dict[tuple[str, bytes], Message] = {}
    for message in messages:
        key = (message.topic, message.payload)
        if key not in newest or message.time >= newest[key].time:
            newest[key] = message
    return newest
