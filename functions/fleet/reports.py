"""Pure: what a device says of one of its files: the body of a report → a `DeviceReport`, or what is wrong with it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from functions.events.names import config_name, is_asset_path, is_config_name

MAX_REPORT_BYTES = 8 * 1024  # a name of 1,024 bytes, each escaped as \u00XX, and room to spare
MAX_REASON_CHARACTERS = 300
AHEAD = timedelta(minutes=5)
"""So far ahead of ours a device's clock may be."""
BEHIND = timedelta(days=30)
"""So old a device's first report may be: one that begins in 1970 has no clock."""

FileState = Literal["downloading", "downloaded", "installing", "installed", "failed", "rolled_back"]
STATES: tuple[FileState, ...] = get_args(FileState)
HAS_IT: tuple[FileState, ...] = ("installed",)
ON_THE_WAY: tuple[FileState, ...] = ("downloading", "downloaded", "installing")
FAILED: tuple[FileState, ...] = ("failed", "rolled_back")

Refusal = Literal[
    "too_large", "not_json", "bad_field", "bad_filename", "unknown_state", "foreign_mac", "foreign_config"
]
REFUSALS: tuple[Refusal, ...] = get_args(Refusal)

# Without controls: PostgreSQL holds no NUL, and a terminal may obey the others.
_Short = Annotated[str, StringConstraints(strip_whitespace=True, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Text = Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_REPORT_BYTES)]


class DeviceReport(NamedTuple):
    """What a device said of one file. Texts are "" where it said nothing; `etag` is unquoted.

    `mac` is in lower case, and so is the name of the device's own config. `at` is by the device's own clock.
    """

    mac: str
    filename: str
    state: FileState
    etag: str = ""
    version_id: str = ""
    progress: int | None = None
    """Per cent."""
    reason: str = ""
    version: str = ""
    agent: str = ""
    at: datetime | None = None
    has_unknown_fields: bool = False


class ReportError(ValueError):
    """A report cannot be used. `refusal` is for metrics; the message says what would be right, and quotes nothing."""

    def __init__(self, refusal: Refusal, words: str) -> None:
        """Keep the refusal as data."""
        self.refusal = refusal
        super().__init__(words)


class _Body(BaseModel):
    """The JSON of a report."""

    model_config = ConfigDict(extra="allow", strict=True)

    filename: str
    state: FileState
    etag: _Short = ""
    version_id: _Short = ""
    progress: Annotated[float, Field(ge=0, le=100)] | None = None
    reason: _Text = ""
    version: _Short = ""
    agent: _Short = ""
    at: Annotated[AwareDatetime, Field(strict=False)] | None = None
    mac: str | None = None


def parse_report(body: bytes, mac: str) -> DeviceReport:
    """Read what the device `mac` (any case) reports. Raises ReportError."""
    if len(body) > MAX_REPORT_BYTES:
        raise ReportError("too_large", f"a report has at most {MAX_REPORT_BYTES} bytes")
    try:
        said = _Body.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from None
    mac = mac.lower()
    if said.mac is not None and said.mac.lower() != mac:
        raise ReportError("foreign_mac", "`mac` is another device's: leave it out, or name your own")
    filename = said.filename
    if is_config_name(filename):
        filename = filename.lower()
        if filename != config_name(mac):
            raise ReportError("foreign_config", "`filename` is another device's config")
    elif not is_asset_path(filename):
        raise ReportError("bad_filename", "`filename` is the path that the message named, e.g. esp32/fw-1.2.bin")
    return DeviceReport(
        mac=mac,
        filename=filename,
        state=said.state,
        etag=said.etag.removeprefix("W/").strip('"'),
        version_id=said.version_id,
        progress=None if said.progress is None else round(said.progress),
        reason="".join(c if c.isprintable() else " " for c in said.reason)[:MAX_REASON_CHARACTERS],
        version=said.version,
        agent=said.agent,
        at=said.at,
        has_unknown_fields=bool(said.model_extra),
    )


def believed(at: datetime | None, *, arrived_at: datetime, last_at: datetime | None) -> datetime:
    """When it happened: the device's word if it is between its last report and `AHEAD` of ours, else the arrival."""
    if at is not None and (last_at or arrived_at - BEHIND) <= at <= arrived_at + AHEAD:
        return at
    return arrived_at


def _refused(error: ValidationError) -> ReportError:
    found = error.errors(include_input=False, include_url=False, include_context=False)
    if any(one["type"] == "json_invalid" for one in found):
        return ReportError("not_json", 'a report is JSON, e.g. {"filename": "fw-1.2.bin", "state": "installed"}')
    field = str(found[0]["loc"][0]) if found[0]["loc"] else ""
    if field == "state":
        return ReportError("unknown_state", f"`state` is one of {', '.join(STATES)}")
    if not field:
        return ReportError("not_json", "a report is a JSON object")
    return ReportError("bad_field", f"`{field}`: {found[0]['msg'].lower()}")
