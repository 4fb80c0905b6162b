"""The HTTP API on MiniStack: routes of the template, roles that IAM holds to their policies, signatures that count."""

from __future__ import annotations

import json
import urllib.error

import pytest

from functions.web.tokens import Keyring
from tests.aws.ministack_cloud import MiniStackCloud

MAC, OTHER_MAC = "a1-b2-c3-d4-e5-f6", "00-00-00-00-00-01"
FIRMWARE = "/assets/firmware-3.0.bin"
CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def token(ministack: MiniStackCloud) -> str:
    """A device's, and a file for it."""
    ministack.put(FIRMWARE[1:], CONTENT)
    ministack.put("assets/firmware-1.0.bin")
    ministack.hear(2)
    return Keyring.parse([ministack.credentials.device_token_keys]).mint(MAC)


def test_each_way_to_ask_for_a_file_has_its_route(ministack: MiniStackCloud, token: str) -> None:
    """HEAD, JSON, by query, an older version, If-None-Match, a name that is encoded."""
    head = ministack.ask(FIRMWARE, token, "HEAD")
    assert (head.status, head.headers["x-object-size"]) == (200, str(len(CONTENT)))
    told = ministack.ask(FIRMWARE, token, accept="application/json")
    document = told.document
    assert (told.status, document["size"]) == (200, len(CONTENT))
    assert ministack.fetch(document["url"]) == CONTENT
    assert ministack.ask("/assets?filename=firmware-3.0.bin", token).status == 307
    older = ministack.ask(f"{FIRMWARE}?version_id={document['version_id']}", token)
    assert ministack.fetch(older.headers["location"]) == CONTENT
    assert ministack.ask(FIRMWARE, token, **{"if-none-match": f'"{document["etag"]}"'}).status == 304
    ministack.put("assets/ein Ordner/größer.bin", b"umlaut")
    ministack.hear()
    encoded = ministack.ask("/assets/ein%20Ordner/gr%C3%B6%C3%9Fer.bin", token)
    assert ministack.fetch(encoded.headers["location"]) == b"umlaut"


def test_who_may_not_is_told_so(ministack: MiniStackCloud, token: str) -> None:
    """No token, a wrong one, what is not there, no such route; an administrator may fetch any device's config."""
    ministack.put(f"configs/{OTHER_MAC}.json", b"{}")
    ministack.hear()
    asked = [
        ministack.ask(FIRMWARE, "").status,
        ministack.ask(FIRMWARE, "nonsense").status,
        ministack.ask(f"/configs/{OTHER_MAC}.json", token).status,
        ministack.ask("/assets/absent", token).status,
        ministack.ask("/nowhere", token).status,
    ]
    assert asked == [401, 401, 404, 404, 404]
    assert ministack.ask(f"/configs/{OTHER_MAC}.json", ministack.credentials.admin_token).status == 307


def test_a_link_that_was_tampered_with_does_not_open(ministack: MiniStackCloud, token: str) -> None:
    """Its signature is of one file."""
    link = ministack.ask(FIRMWARE, token).headers["location"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        ministack.fetch(link.replace("firmware-3.0", "firmware-1.0"))
    assert refused.value.code == 403
    refused.value.close()
    assert ministack.fetch(link) == CONTENT


def test_without_its_roles_policy_the_function_cannot_answer(ministack: MiniStackCloud, token: str) -> None:
    """So that what it could before proves something."""
    iam, role = ministack.emulator.client("iam"), ministack.stack.resources["DownloadRole"]
    policy = {"RoleName": role, "PolicyName": "files"}
    document = iam.get_role_policy(**policy)["PolicyDocument"]
    iam.delete_role_policy(**policy)
    try:
        assert ministack.ask(FIRMWARE, token).status == 503
    finally:
        iam.put_role_policy(**policy, PolicyDocument=json.dumps(document))
    assert ministack.ask(FIRMWARE, token).status == 307
