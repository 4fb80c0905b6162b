"""A secret changes while the functions of the emulated AWS are warm. An emulation (see `cloud`)."""

from __future__ import annotations

import json
import time

from functions.notify import RENEW_SECONDS
from tests.aws.cloud import BELL, Cloud


def test_a_rotated_password_reaches_the_warm_function_on_an_emulated_aws(cloud: Cloud) -> None:
    """It looks into its secret again when the broker refuses it, a minute after the last look, and the upload rings.

    Nothing is deployed and nothing starts anew but the broker.
    """
    cloud.put("assets/before")
    cloud.settle()
    cloud.hear()
    time.sleep(max(0.0, cloud.notify_started_at + RENEW_SECONDS + 1 - time.monotonic()))
    assert cloud.broker.users is not None
    old, new = cloud.broker.users[BELL], "another correct horse"
    cloud.rotate(new)
    cloud.put("assets/after")
    cloud.settle()
    (message,) = cloud.hear()
    assert json.loads(message.payload) == {"filename": "after"}
    assert "not authorised" in cloud.broker.new_log_text()  # the first try, with the old one
    said = cloud.log_text()
    assert "settings have changed" in said
    assert not [password for password in (old, new) if password in said]
