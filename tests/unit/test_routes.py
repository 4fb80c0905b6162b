"""A key is announced exactly as it was uploaded, on one of two topics, or not at all."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.events.envelopes import ObjectCreated
from functions.events.names import is_asset_path
from functions.events.routes import Detection, DeviceTopics, Routes, Skip, SkipReason, Upload
from functions.mqtt.message import Message
from functions.settings import load

MAC = "aa-bb-cc-dd-ee-ff"
CONFIGS, ASSETS = "iotsupport/updates/configs", "iotsupport/updates/assets"


def created(key: str, bucket: str = "devices") -> ObjectCreated:
    """An upload as its sender tells of it."""
    return ObjectCreated(bucket, key, "ObjectCreated:Put", "2026-11-20T12:00:00.000Z", "e1", 42, "v1", "s1")


def route(key: str, routes: Routes | None = None) -> Upload | Skip:
    """What becomes of an upload to `key`, where no detections are announced."""
    found = (routes or Routes()).route(created(key))
    assert not isinstance(found, Detection)
    return found


@pytest.mark.parametrize("mac", [MAC, MAC.upper(), "Aa-bB-00-11-22-99"])
def test_a_config_is_announced_by_its_name(mac: str) -> None:
    """Six hex pairs joined by dashes, in any case, passed on as uploaded."""
    found = route(f"configs/{mac}.json")
    assert isinstance(found, Upload)
    assert (found.message.topic, found.filename) == (CONFIGS, f"{mac}.json")
    assert found.message.payload == b'{"filename": "%s.json"}' % mac.encode()


@pytest.mark.parametrize(
    "name",
    [
        "aa:bb:cc:dd:ee:ff.json",
        "aabbccddeeff.json",
        "aa-bb-cc-dd-ee.json",
        "aa-bb-cc-dd-ee-ff-00.json",
        "aa-bb-cc-dd-ee-fg.json",
        "a-bb-cc-dd-ee-ff.json",
        "aa-bb-cc-dd-ee-\N{FULLWIDTH LATIN SMALL LETTER F}f.json",
        "aa-bb-cc-dd-ee-\N{ARABIC-INDIC DIGIT ONE}1.json",
        "aa\N{EN DASH}bb-cc-dd-ee-ff.json",
        f"{MAC}.json\n",
        f"{MAC}.JSON",
        f"{MAC}.json.bak",
        f"{MAC}_json",
        f" {MAC}.json",
        f"{MAC}",
        f"site/{MAC}.json",
        f"/{MAC}.json",
        f"../{MAC}.json",
        "..",
        ".json",
        "readme.txt",
    ],
)
def test_anything_else_among_the_configs_is_a_mistake(name: str) -> None:
    """It is skipped with a warning: somebody meant it for a device."""
    found = route(f"configs/{name}")
    assert found == Skip("bad_config_name")
    assert found.is_warning


@pytest.mark.parametrize(
    "path",
    [
        "firmware.bin",
        "esp32/v1.2/app.bin",
        "a b+c%2F100% \N{LATIN SMALL LETTER U WITH DIAERESIS}.bin",
        "quote\"and'and\\backslash",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "cafe\N{COMBINING ACUTE ACCENT}",
        "\N{SNOWMAN}\N{BELL SYMBOL}\U0001f514",
        "...",
        ".hidden",
        "a../..b",
        "~/x",
        "-rf",
        "configs/x",
        f"{MAC}.json",
        "\N{NO-BREAK SPACE}\N{RIGHT-TO-LEFT OVERRIDE}",
        "x" * 1024,
        "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 512,
    ],
)
def test_an_asset_is_announced_by_its_path(path: str) -> None:
    """Spaces, quotes and Unicode (in either normal form) arrive as they were uploaded."""
    found = route(f"assets/{path}")
    assert isinstance(found, Upload)
    assert (found.message.topic, found.filename) == (ASSETS, path)
    assert json.loads(found.message.payload) == {"filename": path}


def test_the_payload_is_json_in_utf_8_with_one_key() -> None:
    """Byte for byte: quotes and backslashes escaped, Unicode as it is."""
    found = route('assets/a "b"\\\N{LATIN SMALL LETTER U WITH DIAERESIS}\N{BELL}.bin')
    assert isinstance(found, Upload)
    assert found.message.payload == b'{"filename": "a \\"b\\"\\\\\xc3\xbc\xf0\x9f\x94\x94.bin"}'


NOT_IN_A_STRING = [*range(0x20), *range(0x7F, 0xA0), 0xFDD0, 0xFDEF, 0xFEFF, 0xFFFE, 0xFFFF, 0x1FFFE, 0x1FFFF, 0x10FFFF]


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../x",
        "a/..",
        ".",
        "./x",
        "a/./x",
        "/x",
        "//x",
        "a//x",
        "x" * 1025,
        "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 513,
        "\ud800",
        "a\udfff",
        *(f"a{chr(code)}b" for code in NOT_IN_A_STRING),
        "x\n",
    ],
)
def test_a_path_that_a_device_must_not_join_is_a_mistake(path: str) -> None:
    """No way out of a folder, nothing that MQTT forbids in a string, nothing that no object can be called."""
    found = route(f"assets/{path}")
    assert found == Skip("bad_asset_name")
    assert found.is_warning


@pytest.mark.parametrize("code", [0x20, 0xA0, 0xFDCF, 0xFDF0, 0xFFFD, 0x1FFFD, 0x10000])
def test_only_what_mqtt_forbids_is_refused(code: int) -> None:
    """The neighbours of what is refused pass (MQTT 5 section 1.5.4)."""
    assert is_asset_path(f"a{chr(code)}b")


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("configs/", "folder_marker"),
        ("assets/", "folder_marker"),
        ("assets/esp32/", "folder_marker"),
        (f"configs/{MAC}.json/", "folder_marker"),
        ("assets//", "folder_marker"),
        ("configs", "unmapped"),
        ("assets", "unmapped"),
        ("assetsx/a", "unmapped"),
        ("Assets/a", "unmapped"),
        ("/assets/a", "unmapped"),
        ("x/assets/a", "unmapped"),
        ("readme.txt", "unmapped"),
        ("", "unmapped"),
        ("..", "unmapped"),
        ("../assets/a", "unmapped"),
    ],
)
def test_what_concerns_no_device_is_skipped_quietly(key: str, reason: SkipReason) -> None:
    """Folder markers and keys outside the prefixes are nobody's mistake."""
    found = route(key)
    assert found == Skip(reason)
    assert not found.is_warning


def test_the_settings_choose_prefixes_topics_and_bucket() -> None:
    """All four are configurable, and nested prefixes keep the rest of the key."""
    environ = {"CONFIGS_PREFIX": "a/b", "ASSETS_PREFIX": "a/c/", "TOPIC_PREFIX": "plant/7/", "BUCKET": "devices"}
    routes = Routes.of(load(environ).settings)
    config, asset = route(f"a/b/{MAC}.json", routes), route("a/c/a/c/x", routes)
    assert isinstance(config, Upload)
    assert isinstance(asset, Upload)
    assert (config.message.topic, config.filename) == ("plant/7/updates/configs", f"{MAC}.json")
    assert (asset.message.topic, asset.filename) == ("plant/7/updates/assets", "a/c/x")
    assert routes.topics == (config.message.topic, asset.message.topic)
    assert route(f"configs/{MAC}.json", routes) == Skip("unmapped")


def test_a_foreign_bucket_never_rings() -> None:
    """With `BUCKET` set only that one does, by its exact name; without it any does."""
    key = f"configs/{MAC}.json"
    for bucket in ("other", "Devices", "devices2", ""):
        assert Routes(bucket="devices").route(created(key, bucket)) == Skip("foreign_bucket")
        assert isinstance(Routes().route(created(key, bucket)), Upload)
    assert isinstance(Routes(bucket="devices").route(created(key)), Upload)


def test_a_topic_has_no_leading_slash() -> None:
    """Brokers take one for an empty level, and devices subscribe without."""
    assert Routes().topics == (CONFIGS, ASSETS)


def test_the_properties_are_a_cloud_event() -> None:
    """CloudEvents attributes in their order, then what is known of the object; the id is the event's identity."""
    event = created("assets/a b.bin")
    found = Routes().route(event)
    assert isinstance(found, Upload)
    assert found.identity == event.identity
    assert found.message.time == event.event_time
    assert found.message.user_properties == (
        ("specversion", "1.0"),
        ("id", event.identity.hex()),
        ("source", "s3://devices"),
        ("type", "com.amazonaws.s3.ObjectCreated:Put"),
        ("subject", "assets/a b.bin"),
        ("time", "2026-11-20T12:00:00.000Z"),
        ("etag", "e1"),
        ("size", "42"),
        ("versionid", "v1"),
    )


def test_what_is_not_known_is_left_out() -> None:
    """No property is empty; a size of 0 is a size."""
    found = Routes().route(ObjectCreated("b", "assets/x", "ObjectCreated:Copy"))
    assert isinstance(found, Upload)
    assert [name for name, _ in found.message.user_properties] == ["specversion", "id", "source", "type", "subject"]
    empty = Routes().route(ObjectCreated("b", "assets/x", "ObjectCreated:Copy", size=0))
    assert isinstance(empty, Upload)
    assert dict(empty.message.user_properties)["size"] == "0"


SEGMENTS = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(["", ".", "..", "a", "\\..", "C:"])), max_size=5)


@given(SEGMENTS.map("/".join))
def test_whatever_is_announced_stays_inside_a_folder(path: str) -> None:
    """A device that joins the filename to its folder ends up inside it, and reads the name that was uploaded."""
    for prefix in ("configs/", "assets/"):
        found = route(prefix + path)
        if isinstance(found, Skip):
            continue
        assert found.filename == path
        assert json.loads(found.message.payload.decode()) == {"filename": path}
        folder = Path("/some/folder")
        joined = folder / found.filename
        assert joined.parts[:3] == folder.parts
        assert ".." not in joined.parts
        assert joined != folder
        assert joined.as_posix() == f"/some/folder/{path}"


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(lambda text: text.strip("./")))
def test_every_ordinary_name_is_announced(text: str) -> None:
    """Text without controls, and with nothing but itself as a segment, is a name for an asset."""
    assert is_asset_path(text.replace("/", "-").replace("\\", "-")[:256])  # both separate folders somewhere


def test_with_device_topics_a_config_has_a_second_message_on_its_devices_own_topic() -> None:
    """The same payload and properties; the topic in lower case, the payload as uploaded; assets have none."""
    routes = Routes(device_topics="on")
    found = route(f"configs/{MAC.upper()}.json", routes)
    assert isinstance(found, Upload)
    assert found.own is not None
    assert (found.message.topic, found.own.topic) == (CONFIGS, f"iotsupport/devices/{MAC}/updates")
    assert (found.own.payload, found.own.user_properties) == (found.message.payload, found.message.user_properties)
    assert found.own.payload == b'{"filename": "%s.json"}' % MAC.upper().encode()
    assert (found.message.metric_topic, found.own.metric_topic) == (CONFIGS, "devices/+/updates")
    asset = route("assets/x", routes)
    assert isinstance(asset, Upload)
    assert asset.own is None


def test_with_device_topics_only_a_config_is_not_broadcast() -> None:
    """Its only message is on its device's own topic."""
    found = route(f"configs/{MAC}.json", Routes(device_topics="only"))
    assert isinstance(found, Upload)
    assert (found.message.topic, found.own) == (f"iotsupport/devices/{MAC}/updates", None)


@pytest.mark.parametrize(
    ("device_topics", "labels"),
    [
        ("off", (CONFIGS, ASSETS)),
        ("on", (CONFIGS, ASSETS, "devices/+/updates")),
        ("only", (ASSETS, "devices/+/updates")),
    ],
)
def test_what_is_published_to_has_few_names(device_topics: DeviceTopics, labels: tuple[str, ...]) -> None:
    """For metrics; and for subscribers the same with the prefix."""
    routes = Routes(device_topics=device_topics)
    assert routes.labels == labels
    assert routes.filters == tuple(one.replace("devices/", "iotsupport/devices/") for one in labels)


def test_a_new_prefix_moves_what_waits() -> None:
    """Broadcasts and devices' own topics; what has its topic from elsewhere stays."""
    before, after = Routes(device_topics="on"), Routes(topic_prefix="plant/a", device_topics="on")
    found = route(f"configs/{MAC}.json", before)
    assert isinstance(found, Upload)
    assert found.own is not None
    assert after.moved(found.message, before).topic == "plant/a/updates/configs"
    assert after.moved(found.own, before).topic == f"plant/a/devices/{MAC}/updates"
    elsewhere = Message("iotsupport/camera/1/event", b"{}", label="camera/+/event")
    assert after.moved(elsewhere, before) is elsewhere
