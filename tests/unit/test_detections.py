"""A camera's event: which keys are one, what its document must say, and what is published of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.cameras.detections import (
    LABEL,
    MAX_DOCUMENT_BYTES,
    BadDetectionError,
    CameraTopics,
    DetectionEvent,
    Latest,
    addressed,
    event_message,
    parse,
    rfc3339,
)
from functions.cameras.discovery import camera_topic
from functions.cameras.message import Sighting
from functions.cameras.reader import thumbnail_path
from functions.events.envelopes import ObjectCreated
from functions.events.names import MAX_EVENT_ID_BYTES, is_picture_path
from functions.events.routes import Detection, Routes, Skip, SkipReason, Upload
from functions.settings import SettingsError, load

EVENT_ID, CAMERA_ID = "0b9c2f9e-6f0a-4d55-8d5e-1f1de0a3f1aa", "front-door"
KEY = f"events/{CAMERA_ID}/{EVENT_ID}.json"
ROUTES = Routes(events_prefix="events/")
GOOD: dict[str, Any] = {
    "event_id": EVENT_ID,
    "camera_id": CAMERA_ID,
    "camera_name": "Front door",
    "description": "A person with a parcel — «naïve» ☃",
    "objects_detected": ["person", "package"],
    "confidence": 0.93,
    "source_type": "protect",
    "smart_detection_type": "person",
    "timestamp": "2026-11-20T21:20:28.873Z",
}
FIELDS = tuple(GOOD)
TOPICS = CameraTopics("home")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def created(key: str = KEY, version_id: str = "") -> ObjectCreated:
    """An upload."""
    return ObjectCreated(
        "devices",
        key,
        "ObjectCreated:Put",
        event_time="2026-11-20T21:20:29Z",
        etag="4d22",
        size=300,
        version_id=version_id,
        sequencer="01",
    )


def detection(key: str = KEY, version_id: str = "") -> Detection:
    """The event that an upload to `key` is."""
    found = ROUTES.route(created(key, version_id))
    assert isinstance(found, Detection)
    return found


def encoded(**changes: object) -> bytes:
    """A document that differs from a good one; what is `...` is left out."""
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...}).encode()


def published(document: bytes, thumbnail_url: str | None = None) -> dict[str, Any]:
    """The payload that a document ends as."""
    event = parse(document, detection())
    found: dict[str, Any] = json.loads(event_message(detection(), event, TOPICS, thumbnail_url).payload)
    return found


def refused(document: bytes) -> BadDetectionError:
    """Why a document is none."""
    with pytest.raises(BadDetectionError) as caught:
        published(document)
    return caught.value


# Which keys.


def test_a_document_below_the_events_prefix_is_a_detection() -> None:
    """Camera and event are the two names in its key; the identity is that of the upload."""
    upload = created(version_id="v1")
    found = ROUTES.route(upload)
    assert isinstance(found, Detection)
    assert (found.camera_id, found.event_id) == (CAMERA_ID, EVENT_ID)
    assert (found.object_key, found.version_id) == (KEY, "v1")
    assert found.identity == upload.identity
    assert dict(found.user_properties)["time"] == upload.event_time
    assert found.picture_key == f"events/{CAMERA_ID}/{EVENT_ID}.jpg"


def test_without_a_prefix_nothing_is_a_detection() -> None:
    """Then such a key is as foreign as any other."""
    assert Routes().route(created()) == Skip("unmapped")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("events/a/b.jpg", "unmapped"),
        ("events/a/b.JSON", "unmapped"),
        ("events/", "folder_marker"),
        ("events/a/", "folder_marker"),
        ("events/b.json", "bad_event_name"),
        ("events//b.json", "bad_event_name"),
        ("events/a/.json", "bad_event_name"),
        ("events/a/b/c.json", "bad_event_name"),
        ("events/../b.json", "bad_event_name"),
        ("events/a/..json", "bad_event_name"),
        ("events/a+b/c.json", "bad_event_name"),
        ("events/#/c.json", "bad_event_name"),
        ("events/a/c#.json", "bad_event_name"),
        ("events/a\\b/c.json", "bad_event_name"),
        ("events/a\0/c.json", "bad_event_name"),
        ("events/a\n/c.json", "bad_event_name"),
        ("events/a\ufeff/c.json", "bad_event_name"),
        ("events/\ud800/c.json", "bad_event_name"),
        (f"events/{'a' * (MAX_EVENT_ID_BYTES + 1)}/c.json", "bad_event_name"),
        (f"events/{'é' * (MAX_EVENT_ID_BYTES // 2 + 1)}/c.json", "bad_event_name"),
        (f"events/a/{'c' * (MAX_EVENT_ID_BYTES + 1)}.json", "bad_event_name"),
    ],
)
def test_any_other_key_is_skipped_and_a_wrong_name_is_a_warning(key: str, reason: SkipReason) -> None:
    """Pictures and folders are nobody's mistake; a name that no topic or folder may hold is somebody's."""
    found = ROUTES.route(created(key))
    assert found == Skip(reason)
    assert found.is_warning == (reason == "bad_event_name")


@pytest.mark.parametrize("name", ["a", "61b3f5c7033ea703e7000424", "Küche", "cam 1", "100%", "a?b", "x" * 128, "..."])
def test_ids_may_be_any_text_that_a_folder_and_a_topic_can_hold(name: str) -> None:
    """UUIDs, numbers, words in any script, up to 128 bytes."""
    found = detection(f"events/{name}/{name}.json")
    assert (found.camera_id, found.event_id) == (name, name)


def test_of_two_prefixes_the_first_rules_are_the_files() -> None:
    """An events prefix takes nothing away from configs and assets."""
    routes = Routes(events_prefix="cams/")
    assert isinstance(routes.route(created("assets/cams/a/b.json")), Upload)
    assert isinstance(routes.route(created("cams/a/b.json")), Detection)
    assert Routes(bucket="other", events_prefix="cams/").route(created("cams/a/b.json")) == Skip("foreign_bucket")


@pytest.mark.parametrize("events", ["configs/", "configs/cams/", "a", "/events", "ev//ents"])
def test_the_events_prefix_must_not_overlap_the_others(events: str) -> None:
    """Wherever one begins with the other, a key would have two meanings."""
    with pytest.raises(SettingsError) as caught:
        load({"EVENTS_PREFIX": events, "BUCKET": "devices", "ASSETS_PREFIX": "a/b/"})
    assert [name for name, _ in caught.value.problems] == ["EVENTS_PREFIX"]


def test_the_events_prefix_needs_a_bucket_to_read_from() -> None:
    """The variable that is missing is named; with it, a slash is added where it was left out."""
    with pytest.raises(SettingsError, match="EVENTS_PREFIX: needs BUCKET"):
        load({"EVENTS_PREFIX": "events/"})
    settings = load({"EVENTS_PREFIX": "events", "BUCKET": "devices"}).settings
    assert Routes.of(settings).events_prefix == "events/"
    assert Routes.of(load({}).settings).events_prefix is None


@pytest.mark.parametrize("url", ["bell.example", "ftp://bell.example", "https://user@bell.example", "https://b/?x=1"])
def test_the_public_base_url_is_checked(url: str) -> None:
    """Links begin with it, so nothing may be behind its path."""
    with pytest.raises(SettingsError, match="PUBLIC_BASE_URL"):
        load({"PUBLIC_BASE_URL": url})


# What a document must say.


def test_every_field_is_published_as_it_was_uploaded() -> None:
    """All ten fields, in any script; the thumbnail's link is ours."""
    assert published(encoded(), "https://x/y") == GOOD | {"thumbnail_url": "https://x/y"}
    assert published(encoded())["thumbnail_url"] is None


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    """Each of the nine."""
    error = refused(encoded(**{field: ...}))
    assert (error.field, error.problem) == (field, "is missing")


WRONG: dict[str, list[object]] = {
    **{field: [None, 7, []] for field in ("event_id", "camera_id", "camera_name", "source_type")},
    **{field: [7, ["x"], {}, True] for field in ("description", "smart_detection_type")},
    "objects_detected": [None, "person", {"person": 1}, [1], [None], [["x"]]],
    "confidence": ["0.9", True, -0.1, 100.1, 10**400, [0.9]],
    "timestamp": [
        *(None, True, [], 1e300, -(10**400), "", "now", "2026-11-20", "1763673628", "1712011212345"),
        *("2026-13-01T00:00:00Z", "20261120T212028Z", "2026-11-20T25:00:00Z", "0001-01-01T00:00:00+01:00"),
    ],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_a_wrong_field_is_named_and_its_value_is_not_repeated(field: str, value: object) -> None:
    """The log must be able to say what is wrong without saying what was seen."""
    error = refused(encoded(**{field: value}))
    assert error.field == field
    assert str(error).startswith(f"{field} must be ")
    assert len(str(error)) < 120


@pytest.mark.parametrize("field", ["description", "confidence", "smart_detection_type"])
def test_what_a_camera_may_not_know_may_be_null(field: str) -> None:
    """It is there, and says so."""
    assert published(encoded(**{field: None}))[field] is None


@pytest.mark.parametrize("field", ["event_id", "camera_id"])
def test_the_ids_must_be_those_of_the_key(field: str) -> None:
    """The topic, the thumbnail and Home Assistant's device come from the key: two truths would be none."""
    error = refused(encoded(**{field: "another"}))
    assert (error.field, error.problem) == (field, "must be the one that the object's key names")
    assert refused(encoded(**{field: GOOD[field].upper()})).field == field


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe{}",
        json.dumps(GOOD).encode("utf-16"),
        encoded()[:-1] + b', "x": NaN}',
        encoded()[:-1] + b', "x": Infinity}',
        encoded()[:-1] + b', "x": 1e999}',
        encoded()[:-1] + b', "x": "\\ud800"}',
        encoded()[:-1] + b', "\\udfff": 1}',
        encoded()[:-1] + b', "x": ' + b"9" * 5000 + b"}",
        encoded()[:-1] + b', "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        encoded(x="x" * MAX_DOCUMENT_BYTES),
    ],
    ids=range(15),
)
def test_what_no_json_object_is_is_refused_as_a_whole(document: bytes) -> None:
    """Not JSON, not UTF-8, too large, too deep, or what JSON has no word for."""
    assert refused(document).field == ""


def test_a_description_with_half_a_surrogate_pair_is_refused() -> None:
    """No subscriber could read the message."""
    assert "Unicode" in refused(encoded(description="\ud83d")).problem


def test_a_byte_order_mark_is_read_past() -> None:
    """Some editors write one."""
    assert published(b"\xef\xbb\xbf" + encoded())["event_id"] == EVENT_ID


def test_the_largest_document_is_read() -> None:
    """To the byte."""
    size = MAX_DOCUMENT_BYTES - len(encoded(x=""))
    assert published(encoded(x="x" * size))["x"] == "x" * size
    assert refused(encoded(x="x" * (size + 1))).field == ""


@given(extra=st.dictionaries(st.text().filter(lambda name: name not in FIELDS), json_values, max_size=5))
def test_unknown_fields_pass_through(extra: dict[str, Any]) -> None:
    """Whatever they hold, and beside the known ones; only the thumbnail's link is always ours."""
    assert published(encoded(**extra), "ours") == GOOD | extra | {"thumbnail_url": "ours"}


@given(document=st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_document_does_more_than_be_refused(document: bytes) -> None:
    """Whatever is uploaded under such a key."""
    assert refused(document).problem


@given(
    changes=st.fixed_dictionaries(
        {
            "camera_name": st.text(),
            "description": st.none() | st.text(),
            "objects_detected": st.lists(st.text()),
            "confidence": st.none() | st.integers(0, 100) | st.floats(0, 100),
            "source_type": st.text(),
            "smart_detection_type": st.none() | st.text(),
        }
    )
)
def test_any_text_and_number_survives(changes: dict[str, Any]) -> None:
    """What is published is what was uploaded, types and all."""
    found = published(encoded(**changes))
    assert found == GOOD | changes | {"thumbnail_url": None}
    assert type(found["confidence"]) is type(changes["confidence"])


# Moments.


@pytest.mark.parametrize(
    ("given_as", "expected"),
    [
        ("2026-11-20T21:20:28Z", "2026-11-20T21:20:28Z"),
        ("2026-11-20t21:20:28z", "2026-11-20T21:20:28Z"),
        ("2026-11-20T21:20:28.5Z", "2026-11-20T21:20:28.500Z"),
        ("2026-11-20T21:20:28.123456789Z", "2026-11-20T21:20:28.123456Z"),
        ("2026-11-20T23:20:28+02:00", "2026-11-20T21:20:28Z"),
        ("2026-11-20T23:50:28+0230", "2026-11-20T21:20:28Z"),
        ("2026-11-20T14:20:28-07:00", "2026-11-20T21:20:28Z"),
        ("2026-11-20T21:20:28-00:00", "2026-11-20T21:20:28Z"),
        ("2026-11-20 21:20:28", "2026-11-20T21:20:28Z"),
        ("2026-11-20T21:20:28.000001", "2026-11-20T21:20:28.000001Z"),
        ("2026-11-20T21:20", "2026-11-20T21:20:00Z"),
        ("2027-01-01T00:30:00+01:00", "2026-12-31T23:30:00Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        (1763673628, "2025-11-20T21:20:28Z"),
        (1763673628.25, "2025-11-20T21:20:28.250Z"),
        (1763673628250, "2025-11-20T21:20:28.250Z"),
        (0, "1970-01-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59Z"),
    ],
)
def test_a_moment_is_published_in_utc(given_as: object, expected: str) -> None:
    """RFC 3339 out; RFC 3339, the same without a zone (UTC), or seconds or milliseconds since 1970 in."""
    assert published(encoded(timestamp=given_as))["timestamp"] == expected


@given(
    moment=st.datetimes(timezones=st.just(UTC) | st.builds(timezone, st.timedeltas(timedelta(-0.9), timedelta(0.9))))
)
def test_every_moment_keeps_its_instant(moment: datetime) -> None:
    """Through text and back, to the microsecond; what is out of the calendar in UTC is refused by name."""
    try:
        expected = moment.astimezone(UTC)
    except OverflowError:
        with pytest.raises(ValueError, match="years"):
            rfc3339(moment)
        return
    if moment.utcoffset() == timedelta(0):
        assert published(encoded(timestamp=moment.isoformat()))["timestamp"] == rfc3339(moment)
    assert datetime.fromisoformat(rfc3339(moment)) == expected
    assert rfc3339(moment).endswith("Z")


def test_uuids_and_datetimes_serialise() -> None:
    """Also in the fields that nobody here knows, for who makes events in Python."""
    moment = datetime(2026, 11, 20, 23, 20, 28, tzinfo=timezone(timedelta(hours=2)))
    event = replace(
        parse(encoded(), detection()),
        event_id=UUID(EVENT_ID),
        timestamp=moment,
        extra={"track": UUID(int=7), "seen": [datetime(2026, 1, 2)]},  # noqa: DTZ001 - without a zone is the point
    )
    found = json.loads(event.payload(None))
    assert found["event_id"] == EVENT_ID
    assert found["timestamp"] == "2026-11-20T21:20:28Z"
    assert found["track"] == str(UUID(int=7))
    assert found["seen"] == ["2026-01-02T00:00:00Z"]
    with pytest.raises(BadDetectionError):
        replace(event, extra={"x": object()}).payload(None)


# What is published.


def test_the_message_goes_where_the_cameras_topics_say_and_how() -> None:
    """Prefix, QoS and retain are the stored ones; metrics see one topic for all cameras."""
    event = parse(encoded(), detection())
    plain = event_message(detection(), event, TOPICS, None)
    assert (plain.topic, plain.qos, plain.retain) == ("home/camera/front-door/event", None, False)
    assert plain.metric_topic == LABEL == "camera/+/event"
    stored = event_message(detection(), event, CameraTopics("cams", 2, retain=True), None)
    assert (stored.topic, stored.qos, stored.retain) == ("cams/camera/front-door/event", 2, True)


def test_the_environments_topics_are_the_default() -> None:
    """TOPIC_PREFIX, MQTT_QOS as everything else, never retained."""
    assert CameraTopics.of(load({"TOPIC_PREFIX": "house"}).settings) == CameraTopics("house")


@pytest.mark.parametrize("camera_id", ["front-door", "Küche", "cam 1", "100%"])
def test_events_go_where_home_assistant_is_told_to_listen(camera_id: str) -> None:
    """The same topic as in the camera's discovery message."""
    found = detection(f"events/{camera_id}/{EVENT_ID}.json")
    message = event_message(found, parse(encoded(camera_id=camera_id), found), TOPICS, None)
    assert message.topic == camera_topic("home", camera_id)


def test_the_message_tells_of_its_upload_but_not_of_the_objects_etag() -> None:
    """CloudEvents attributes as update notifications have them; what is published is the content itself."""
    message = event_message(detection(version_id="v1"), parse(encoded(), detection()), TOPICS, None)
    properties = dict(message.user_properties)
    assert properties["id"] == detection(version_id="v1").identity.hex()
    assert properties["subject"] == KEY
    assert properties["source"] == "s3://devices"
    assert not {"etag", "size", "versionid"} & set(properties)


# Links.


def test_a_thumbnails_link_names_it_by_path_where_a_gateway_passes_that_on() -> None:
    """Otherwise by a parameter, as assets are asked for."""
    assert thumbnail_path("a b/é.jpg", "t") == "/thumbnails/a%20b/%C3%A9.jpg?token=t"
    assert thumbnail_path("100%/x?.jpg", "t") == "/thumbnails?filename=100%25%2Fx%3F.jpg&token=t"


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("a/b.jpg", True),
        ("a/b.json", False),
        ("a/b", False),
        ("b.jpg", False),
        ("a/b/c.jpg", False),
        ("../b.jpg", False),
    ],
)
def test_only_a_cameras_picture_has_a_picture_path(path: str, *, is_one: bool) -> None:
    """So that no link reaches anything else below the prefix."""
    assert is_picture_path(path) is is_one


def test_an_event_made_by_hand_needs_no_extra_fields() -> None:
    """The value is of use without a document, too."""
    event = DetectionEvent(EVENT_ID, CAMERA_ID, "", None, (), None, "rtsp", None, datetime(2026, 1, 1, tzinfo=UTC))
    assert json.loads(event.payload(None)) == {
        "event_id": EVENT_ID,
        "camera_id": CAMERA_ID,
        "camera_name": "",
        "description": None,
        "objects_detected": [],
        "confidence": None,
        "source_type": "rtsp",
        "smart_detection_type": None,
        "timestamp": "2026-01-01T00:00:00Z",
        "thumbnail_url": None,
    }


@pytest.mark.parametrize(
    ("text", "published_as"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T23:59:60.5Z", "2017-01-01T00:00:00.500Z"),
        ("2017-01-01T00:59:60+01:00", "2017-01-01T00:00:00Z"),
        ("2016-12-31 23:59:60", "2017-01-01T00:00:00Z"),
    ],
)
def test_a_leap_second_is_the_first_of_the_next_day(text: str, published_as: str) -> None:
    """RFC 3339 has it, and clocks that know none show it so."""
    assert published(encoded(timestamp=text))["timestamp"] == published_as


@pytest.mark.parametrize("text", ["2016-12-31T12:00:60Z", "2017-01-01T23:59:60+01:00", "9999-12-31T23:59:60Z"])
def test_no_other_minute_has_sixty_one_seconds(text: str) -> None:
    """Nor is there a day after the last one."""
    assert refused(encoded(timestamp=text)).field == "timestamp"


@pytest.mark.parametrize(
    ("text", "ahead"),
    [
        ("2026-11-20T13:00:00", True),
        ("2026-11-20T12:04:00", False),
        ("2026-11-20T13:00:00Z", False),
        (1795179600, False),
    ],
)
def test_a_time_without_a_zone_that_lies_ahead_is_a_local_one(text: str | int, *, ahead: bool) -> None:
    """In UTC it would be of the future; with a zone it is merely a wrong clock."""
    event = parse(encoded(timestamp=text), detection())
    assert event.lacks_zone(datetime(2026, 11, 20, 12, tzinfo=UTC)) == ahead


def test_the_latest_of_a_camera_is_by_its_own_time() -> None:
    """An older event is none, a repeat is; a time far ahead counts as now; cameras do not meddle."""
    now, minute = datetime(2026, 11, 20, 12, tzinfo=UTC), timedelta(minutes=1)
    latest = Latest(limit=2)
    assert latest.take(Sighting("a", now), now)
    assert latest.take(Sighting("a", now), now)
    assert not latest.take(Sighting("a", now - minute), now)
    assert latest.take(Sighting("b", now - minute), now)
    assert latest.take(Sighting("a", now + 60 * minute), now)
    assert latest.take(Sighting("a", now + minute), now + minute)
    assert latest.take(Sighting("a", now + 5 * minute), now + minute)
    assert not latest.take(Sighting("a", now + 4 * minute), now + minute)
    latest.forget("a")
    assert latest.take(Sighting("a", now), now)


def test_a_message_bears_the_settings_of_its_sending() -> None:
    """Topic, QoS and retaining; nothing else of it changes."""
    made = event_message(detection(), parse(encoded(), detection()), TOPICS, None)
    assert isinstance(made.about, Sighting)
    sent = addressed(made, made.about, CameraTopics("house", 2, retain=True))
    assert sent == replace(made, topic=f"house/camera/{CAMERA_ID}/event", qos=2, retain=True)
    assert not addressed(made, made.about, CameraTopics("house", 2, retain=True), retain=False).retain
