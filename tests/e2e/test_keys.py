"""Keys that S3 allows and that are awkward for somebody on the way: right, or not at all."""

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from tests.e2e.world import ASSETS, CONFIGS, World, eventually, filename_of, fresh

RINGING = {
    "spaces": " a name  with spaces ",
    "plus": "c++.bin",
    "percent": "100%.bin",
    "escaped slash": "a%2Fb.bin",
    "doubly escaped slash": "a%252Fb.bin",
    "escaped NUL": "%00.bin",
    "query": "a&b=c?d;e",
    "fragment": "a#b",
    "quotes": "\"double\" and 'single'",
    "backslash": "back\\slash\\n",
    "punctuation": "a:b*<c>|d,e@f$g!h(i)[j]{k}^`~",
    "NFC": "caf\u00e9.bin",
    "NFD": "cafe\u0301.bin",
    "emoji": "\N{BELL}\N{ZERO WIDTH JOINER}\N{VARIATION SELECTOR-16}.bin",
    "right to left": "\u05d0\u05d1\u202e.bin",
    "wildcards of MQTT": "+/#/$SYS",
    "nested": "deep/er/and deeper.bin",
    "hidden": ".hidden",
    "dots": "..x../y..",
    "payload in a name": '{"filename": "other"}',
    "1,000 bytes": "/".join("x" * 240 for _ in range(4)) + "/" + "y" * 29,
}
SKIPPED = {
    "U+FFFE": ("assets/a\ufffe.bin", "bad_asset_name"),
    "tab": ("assets/a\tb", "bad_asset_name"),
    "C1 control": ("assets/a\u0085b", "bad_asset_name"),
    "parent": ("assets/../x", "bad_asset_name"),
    "this folder": ("assets/./x", "bad_asset_name"),
    "empty segment": ("assets//x", "bad_asset_name"),
    "folder marker": ("assets/folder/", "folder_marker"),
    "prefix itself": ("assets/", "folder_marker"),
    "no MAC": ("configs/not-a-mac.json", "bad_config_name"),
    "MAC with colons": ("configs/a1:b2:c3:d4:e5:f6.json", "bad_config_name"),
    "MAC in a folder": ("configs/x/a1-b2-c3-d4-e5-f6.json", "bad_config_name"),
    "other extension": ("configs/a1-b2-c3-d4-e5-f6.JSON", "bad_config_name"),
}


@pytest.mark.parametrize("filename", RINGING.values(), ids=RINGING.keys())
def test_a_strange_name_rings_exactly_as_it_was_uploaded(world: World, filename: str) -> None:
    """The payload's filename is the key behind its prefix, character by character."""
    world.put(f"assets/{filename}")
    [message] = world.hear(filename)
    assert dict(message.user_properties)["subject"] == f"assets/{filename}"


def test_a_mac_is_passed_on_in_the_case_that_it_was_uploaded_in(world: World) -> None:
    """Object keys are case-sensitive, so the name is not normalised."""
    for name in ("A1-B2-C3-D4-E5-F6.json", "a1-B2-c3-D4-e5-F6.json"):
        world.put(f"configs/{name}")
        world.hear(name, topic=CONFIGS)


@pytest.mark.parametrize(("key", "outcome"), SKIPPED.values(), ids=SKIPPED.keys())
def test_a_key_that_is_no_proper_name_is_skipped_and_counted_and_blocks_nobody(
    world: World, key: str, outcome: str
) -> None:
    """No message, one more skip in `events_total`, a warning where somebody meant a device; the next upload rings."""
    before = world.metric("events_total", outcome=outcome)
    try:
        world.put(key)
    except ClientError as error:
        # MinIO will not have such a key, and then nobody needs to hear of it.
        assert "InvalidResourceName" in str(error) or "InvalidObjectName" in str(error)  # noqa: PT017 - only a refusal has a reason
        world.assert_silent()
        return
    world.assert_silent()
    assert eventually(lambda: world.metric("events_total", outcome=outcome) == before + 1)
    warned = [line["object_key"] for line in world.log("WARNING")]
    assert (key in warned) == outcome.startswith("bad_")


def test_the_longest_key_that_s3_allows_rings_whole(world: World) -> None:
    """1,024 bytes are a key like any other."""
    filename = "/".join(["z" * 200] * 6)[: 1024 - len("assets/")]
    world.put(f"assets/{filename}")
    world.hear(filename)


def test_a_key_longer_than_s3_allows_never_rings_and_blocks_nobody(world: World) -> None:
    """MinIO refuses 1,025 bytes; moto takes them, and then the event is malformed, counted, and the next one rings."""
    filename = "/".join(["z" * 200] * 6)[: 1025 - len("assets/")]
    before = world.metric("events_total", outcome="malformed")
    taken = True
    try:
        world.put(f"assets/{filename}")
    except ClientError as error:
        taken = False
        assert "KeyTooLong" in str(error)  # noqa: PT017 - only a refusal has a reason
    world.assert_silent()
    assert eventually(lambda: world.metric("events_total", outcome="malformed") == before + taken)


@pytest.mark.parametrize(
    "filename",
    RINGING.values(),
    ids=RINGING.keys(),
)
def test_versity_names_its_keys_raw_and_they_ring_as_uploaded(versity_world: World, filename: str) -> None:
    """Versity GW escapes nothing in its events: `+` and `%2F` are what they look like."""
    versity_world.put(f"assets/{filename}")
    [message] = versity_world.hear(filename)
    assert message.topic == ASSETS


def test_versity_rings_for_uploads_and_never_for_removals(versity_world: World) -> None:
    """Its one webhook tells of everything; only content that was created rings, once."""
    world, name = versity_world, fresh()
    for body in (b"one", b"two"):
        world.put(f"assets/{name}", body)
        [message] = world.hear(name)
        assert dict(message.user_properties)["etag"] == world.etag(f"assets/{name}")
    world.s3.delete_object(Bucket="devices", Key=f"assets/{name}")
    assert eventually(lambda: world.metric("events_total", outcome="removed") == 1)
    world.assert_silent()
    assert filename_of(message) == name
