"""Pure: what the administration's API answers about the fleet: devices, files, uploads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from functions.admin.schemas import Instant, Moment, Schema
from functions.events.names import MAX_FILENAME_BYTES
from functions.fleet.channels import ChoiceRule
from functions.fleet.reports import FileState
from functions.fleet.standing import HeardBy, KnownBy, Standing


class TargetAnswer(Schema):
    """The file that a device should have."""

    filename: str
    etag: str | None = Field(description="Null where the bucket has no such file.")
    rule: ChoiceRule = Field(
        description="`assigned` by an administrator; `channel`: the newest of what it installed last."
    )


class DeviceAnswer(Schema):
    """A device, and how far it is with what it should have."""

    mac: str
    source: KnownBy = Field(description="How it became known.")
    known_since: Moment
    online: bool | None = Field(description="What the broker says; null where it has said nothing.")
    online_at: Moment | None = Field(description="Since when.")
    reported_at: Moment | None = Field(description="When it reported last, by its own clock where that can be right.")
    version: str | None = Field(description="As the device calls it.")
    agent: str | None = Field(description="The device's program, as it calls itself.")
    target: TargetAnswer | None = Field(description="Null where it follows nothing.")
    standing: Standing | None = Field(description="How far it is with that file.")


class DevicesAnswer(Schema):
    """One page of devices, by MAC."""

    devices: tuple[DeviceAnswer, ...]
    next: str | None = Field(description="Ask again with `after` set to this; null on the last page.")


class HeldAnswer(Schema):
    """What a device said last of one of its files."""

    filename: str
    etag: str | None
    version_id: str | None
    state: FileState
    progress: int | None = Field(description="Per cent.")
    reason: str
    at: Moment
    arrived_at: Instant
    current: bool = Field(description="Whether it is about the file as it is in the bucket now.")


class PastAnswer(Schema):
    """A state that a file of the device was in."""

    filename: str
    etag: str | None
    state: FileState
    reason: str
    at: Moment
    arrived_at: Instant


class DeviceDetailAnswer(DeviceAnswer):
    """One device, what it holds, and its last 100 states."""

    files: tuple[HeldAnswer, ...] = Field(description="The newest report first.")
    history: tuple[PastAnswer, ...] = Field(description="Newest first.")


class FleetFileAnswer(Schema):
    """A file in the bucket, and how many devices have it."""

    filename: str = Field(description="As the message names it.")
    kind: Literal["config", "asset"]
    key: str
    etag: str | None
    size: int
    last_modified: Moment
    channel: str | None = Field(description="The folder; null in the root, which is no channel, and for configs.")
    current: bool = Field(description="Whether it is the newest of its stem; configs are.")
    should: int = Field(description="Devices that should have it: the sum of the others.")
    has_it: int
    on_the_way: int
    failed: int
    waiting: int
    offline: int


class HearingAnswer(Schema):
    """Whether devices' reports are heard by MQTT."""

    by: HeardBy = Field(description="`another`: one that shares the database, if there is one.")
    detail: str = Field(description="Why nobody does.")


class FleetFilesAnswer(Schema):
    """One page of files, newest first."""

    files: tuple[FleetFileAnswer, ...]
    reports: HearingAnswer
    next: str | None = Field(description="Ask again with `after` set to this; null on the last page.")


class FileDeviceAnswer(Schema):
    """How far one device is with a file."""

    mac: str
    standing: Standing
    online: bool | None
    state: FileState | None = Field(description="What it reported last of this file.")
    progress: int | None
    reason: str
    etag: str | None
    at: Moment | None


class FileDevicesAnswer(Schema):
    """One page of the devices that should have a file, by MAC."""

    devices: tuple[FileDeviceAnswer, ...]
    next: str | None = Field(description="Ask again with `after` set to this; null on the last page.")


class UploadAnswer(Schema):
    """An upload and its legs."""

    id: str = Field(description="As the message's `id`.")
    key: str
    filename: str
    etag: str | None
    size: int | None
    uploaded_at: Instant | None = Field(description="By the store's clock.")
    rang_at: Instant = Field(description="When the host heard of it.")
    confirmed_at: Instant | None = Field(description="When the broker confirmed the message.")
    has_it: int = Field(description="Devices that have reported it installed since.")
    first_at: Instant | None = Field(description="When the first of them was heard.")
    last_at: Instant | None = Field(description="When the last of them was.")


class UploadsAnswer(Schema):
    """The last uploads, newest first."""

    uploads: tuple[UploadAnswer, ...]


class Assignment(BaseModel):
    """Which asset a device should have."""

    model_config = ConfigDict(extra="forbid")

    filename: Annotated[str, StringConstraints(max_length=MAX_FILENAME_BYTES)] = Field(
        description="Its path below ASSETS_PREFIX; empty: what the device follows by itself."
    )
