"""Pure: a message about a camera. Stored settings say on which topic and how, and may change until it is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from functions.mqtt.message import Message


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera as its events name it; `name` is "" where they do not."""

    camera_id: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A camera's event, by what decides whether it is the camera's latest. `at` is in UTC."""

    camera_id: str
    at: datetime


@dataclass(frozen=True, slots=True)
class CameraMessage(Message):
    """A message that gets its topic when it is sent. About a `Camera`: this is its discovery message."""

    about: Camera | Sighting = field(kw_only=True)
