"""Credentials of a real MinIO that may not read all that is in it."""

from __future__ import annotations

import json

from infra.local.stores import Minio

SESSION_SECONDS = 3600


def restricted(store: Minio, *denied: str, action: str = "s3:GetObject") -> dict[str, str]:
    """Environment variables of whoever may do all but `action` to objects whose `bucket/key` fits one of `denied`."""
    statements = [
        {"Effect": "Allow", "Action": ["s3:*"], "Resource": ["arn:aws:s3:::*"]},
        {"Effect": "Deny", "Action": [action], "Resource": [f"arn:aws:s3:::{one}" for one in denied]},
    ]
    given = store.client("sts").assume_role(
        RoleArn="arn:aws:iam::123456789012:role/any",  # MinIO reads neither
        RoleSessionName="bucketbell",
        DurationSeconds=SESSION_SECONDS,
        Policy=json.dumps({"Version": "2012-10-17", "Statement": statements}),
    )["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
        "AWS_SESSION_TOKEN": given["SessionToken"],
    }
