"""Pure: which region a store names when it refuses another, and what a person is told of it."""

from __future__ import annotations

import html
import re
from typing import NamedTuple

WRONG_REGION = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
"""Codes of a store that was asked, or signed for, with a region that is not its own."""

WRONG_IN_A_LINK = WRONG_REGION | {"AuthorizationQueryParametersError"}
"""The last is also the code of a link that is wrong otherwise, and then no region is named."""

QUESTION = "is S3_REGION, or else AWS_REGION, the store's region?"

# An element, or in words: AWS and MinIO expect 'eu-west-1', Garage '20261130/garage/s3/aws4_request'.
_NAMED = re.compile(r"(?:<Region>|expect(?:ing|ed):? ['`](?:\d{8}/)?)([A-Za-z0-9-]{1,63})(?:<|/s3/aws4_request|['`])")
_ORIGINS = {
    "default": "no region is set, and {} is assumed",
    "profile": "the region of the AWS profile is {}",
    "SQS_QUEUE_URL": "the region in SQS_QUEUE_URL is {}",
}


class Region(NamedTuple):
    """A region's name, and the variable that says so, or `profile`, or `default`."""

    name: str
    origin: str


def named_region(text: str) -> str:
    """The region that a store names in its refusal; "" for none."""
    found = _NAMED.search(html.unescape(text))
    return found[1] if found else ""


def mismatch(ours: Region, theirs: str) -> str:
    """What is wrong, for people."""
    set_to = _ORIGINS.get(ours.origin, f"{ours.origin} is {{}}").format(ours.name)
    return f"{set_to}, but the store signs for {theirs}"


def sentence(words: str) -> str:
    """`words` as a sentence begins: a variable keeps its letters."""
    return words[:1].upper() + words[1:]


def remedy(theirs: str) -> str:
    """What to do about it."""
    return f"set S3_REGION={theirs}"
