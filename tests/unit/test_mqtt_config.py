"""What people may store as broker settings, and how they hear what is wrong."""

import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from functions.settings.addresses import check_database_url, parse_host
from functions.stored.model import MAX_PROBLEMS, MqttConfig, MqttConfigChange, problems

CANARY = "canary-5f3a"
LEAST: dict[str, Any] = {"broker_host": "broker.local", "topic_prefix": "unifi/protect"}


def wrong_with(document: object) -> list[dict[str, str]]:
    """The problems of this document, the same whether it comes parsed or as JSON."""
    with pytest.raises(ValidationError) as parsed:
        MqttConfigChange.model_validate(document)
    with pytest.raises(ValidationError) as text:
        MqttConfigChange.model_validate_json(json.dumps(document))
    assert [found["field"] for found in problems(parsed.value)] == [found["field"] for found in problems(text.value)]
    return problems(parsed.value)


@pytest.mark.parametrize(
    ("field", "values", "problem", "expected"),
    [
        ("qos", [3, -1, 2**70], "is too", "the integer 0, 1 or 2"),
        ("qos", ["1", 1.0, True, None, [1]], "is not an integer", "the integer 0, 1 or 2"),
        ("broker_port", [0, 65536, -1, 2**70], "is too", "from 1 to 65535"),
        ("broker_port", ["1883", 1883.0, True, None], "is not an integer", "from 1 to 65535"),
        (
            "broker_host",
            [
                *("a..b", "a" * 64, "a" * 70 + ".local", "http://x", "mqtt://x", "a b", " a", "a\n", "x:1883", "u@x"),
                *("-a", "a-", ".", ".a", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher", "a/b", "a\x00", "a_b!"),
                *("1.2.3", "256.1.1.1", "127.1", "2852039166", "0x7f.1", "a.0x7f", "1.2.3.4.", "01.2.3.4"),
                *("::g", "[::1", "::1]", "[]", "[1.2.3.4]", "::1%", "::1%a b", "1::2::3"),
            ],
            "is not a valid host name or address",
            "e.g. broker.local",
        ),
        ("broker_host", [""], "is empty", "e.g. broker.local"),
        ("broker_host", [("a" * 60 + ".") * 5], "is too long", "e.g. broker.local"),
        ("broker_host", [None, 1, ["a"]], "is not text", "e.g. broker.local"),
        ("username", ["u" * 257, "u" * 300], "is too long", "1 to 256"),
        ("username", ["a\x00", "a\nb", "\x7f"], "holds a control character", "1 to 256"),
        ("username", [""], "is empty", "or null"),
        ("username", [7, False], "is not text", "1 to 256"),
        ("topic_prefix", ["/a", "/", "$SYS", "//"], "begins with / or $", "beginning with neither / nor $"),
        ("topic_prefix", ["a+", "a/+/b", "#", "a b", "a\x00", "a\x85"], "holds +, #", "without + #"),
        ("topic_prefix", [""], "is empty", "1 to 128"),
        ("topic_prefix", ["a" * 129], "is too long", "1 to 128"),
        ("discovery_prefix", ["/a", "$a"], "begins with / or $", "e.g. homeassistant"),
        ("discovery_prefix", ["a#", "a\x00", "home assistant"], "holds +, #", "e.g. homeassistant"),
        ("discovery_prefix", [None], "is not text", "e.g. homeassistant"),
        ("use_tls", [1, "true", None], "is neither true nor false", "true or false"),
        ("enabled", [0, "yes", None], "is neither true nor false", "true or false"),
        ("discovery_enabled", [1], "is neither true nor false", "true or false"),
        ("retain_messages", ["on"], "is neither true nor false", "true or false"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(
    field: str, values: list[object], problem: str, expected: str
) -> None:
    """The one wrong field is named, with what is wrong and what would be right."""
    for value in values:
        (found,) = wrong_with(LEAST | {field: value})
        assert found["field"] == field, value
        assert problem in found["problem"], value
        assert expected in found["expected"], value


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        *((f"{CANARY}{control}", "holds a control character") for control in "\x00\r\n\t\x1b\x7f\x85"),
        (f"{CANARY}" * 400, "is too long"),
        ("", "is empty"),
        ([CANARY], "is not text"),
        ({"text": CANARY}, "is not text"),
    ],
)
def test_a_wrong_password_is_never_repeated(password: object, problem: str) -> None:
    """Neither the problems nor any text of the error hold it."""
    document = LEAST | {"username": "u", "password": password}
    (found,) = wrong_with(document)
    assert (found["field"], found["problem"]) == ("password", problem)
    with pytest.raises(ValidationError) as caught:
        MqttConfigChange.model_validate(document)
    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert CANARY not in said + json.dumps(problems(caught.value))


def test_a_password_that_is_no_text_is_refused() -> None:
    """Half a surrogate pair cannot be sent to a broker."""
    with pytest.raises(ValidationError) as caught:
        MqttConfigChange.model_validate(LEAST | {"username": "u", "password": "a\ud800"})
    (found,) = problems(caught.value)
    assert (found["field"], found["problem"]) == ("password", "is not valid Unicode text")


def test_a_password_needs_a_username() -> None:
    """A password alone is a mistake; one that is only kept or cleared is not."""
    (found,) = wrong_with(LEAST | {"password": CANARY})
    assert (found["field"], found["problem"]) == ("password", "needs a username")
    assert MqttConfigChange.model_validate(LEAST | {"password": None}).password is None


def test_unknown_fields_are_refused_and_named() -> None:
    """Also what looks like ours; a stranger's name is shown short and in one line."""
    found = wrong_with(LEAST | {"Broker_Host": "x", "has_password": True, "a\nb": 1, "x" * 1000: 1})
    assert [one["field"] for one in found] == [
        "Broker_Host",
        "has_password",
        "a\N{REPLACEMENT CHARACTER}b",
        "x" * 64 + "…",
    ]
    assert {one["problem"] for one in found} == {"is not a setting"}
    assert "broker_host" in found[0]["expected"]


def test_everything_wrong_is_said_at_once_and_not_without_end() -> None:
    """Each field that is wrong has a problem; a document of a thousand has not a thousand."""
    found = wrong_with({"broker_port": 0, "qos": 3, "username": ""})
    assert [one["field"] for one in found] == ["broker_host", "broker_port", "username", "topic_prefix", "qos"]
    assert found[0]["problem"] == found[3]["problem"] == "is missing"
    assert len(wrong_with({f"field{number}": 1 for number in range(1000)})) == MAX_PROBLEMS


@pytest.mark.parametrize("document", ["[]", "1", "null", '"text"', "", "{", '{"qos": 1', "[" * 1000])
def test_what_is_no_object_is_a_problem_of_the_whole(document: str) -> None:
    """It is told from a wrong field."""
    with pytest.raises(ValidationError) as caught:
        MqttConfigChange.model_validate_json(document)
    assert [found["field"] for found in problems(caught.value)] == ["document"]


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("broker_host", "Broker.LOCAL", "broker.local"),
        ("broker_host", "broker.local.", "broker.local."),
        ("broker_host", "mosquitto_1", "mosquitto_1"),
        ("broker_host", "192.0.2.7", "192.0.2.7"),
        ("broker_host", "::1", "::1"),
        ("broker_host", "[2001:DB8::1]", "2001:db8::1"),
        ("broker_host", "fe80::1%eth0", "fe80::1%eth0"),
        ("broker_host", "a" * 63, "a" * 63),
        ("broker_host", "4broker", "4broker"),
        ("broker_port", 1, 1),
        ("broker_port", 65535, 65535),
        ("qos", 0, 0),
        ("qos", 2, 2),
        ("username", "u" * 256, "u" * 256),
        ("username", "a b \N{LATIN SMALL LETTER U WITH DIAERESIS}", "a b \u00fc"),
        ("topic_prefix", "unifi/protect//", "unifi/protect"),
        ("topic_prefix", "a" * 128, "a" * 128),
        ("discovery_prefix", "ha/", "ha"),
    ],
)
def test_a_right_value_is_taken_as_it_is_meant(field: str, value: object, meant: object) -> None:
    """Up to each bound; names lose their capitals, addresses their brackets, prefixes a slash at the end."""
    change = MqttConfigChange.model_validate(LEAST | {field: value})
    assert getattr(change, field) == meant
    assert change.config == MqttConfig.model_validate(LEAST | {field: value})


def test_an_omitted_password_is_told_from_a_cleared_one() -> None:
    """By the fields that were set; nothing of a password shows."""
    omitted, cleared, given_one = (
        MqttConfigChange.model_validate(LEAST | {"username": "u"} | more)
        for more in ({}, {"password": None}, {"password": CANARY})
    )
    assert "password" not in omitted.model_fields_set
    assert "password" in cleared.model_fields_set
    assert omitted.password is cleared.password is None
    assert given_one.password == SecretStr(CANARY)
    assert CANARY not in f"{given_one} {given_one!r} {given_one.model_dump()} {given_one.model_dump_json()}"
    assert type(given_one.config) is MqttConfig


def test_settings_cannot_be_changed_under_way() -> None:
    """They pass between threads."""
    change = MqttConfigChange.model_validate(LEAST)
    with pytest.raises(ValidationError):
        change.qos = 2


@given(st.text(max_size=80))
def test_whatever_is_taken_for_a_host_is_taken_again(text: str) -> None:
    """Any text is refused, or comes back as an ASCII host that means itself."""
    try:
        host = parse_host(text)
    except ValueError:
        return
    assert host.isascii()
    assert host == host.lower() == parse_host(host)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////var/lib/bucketbell/settings.db",
        "sqlite:///settings.db",
        "postgresql://db.local/bucketbell",
        "postgresql://user:p%40ss@db.local:5432/bucketbell?sslmode=require",
        "postgresql+psycopg://user@[::1]:5432/bucketbell",
        "postgresql:///bucketbell?host=/run/postgresql",
    ],
)
def test_a_database_may_be_sqlite_or_postgresql(url: str) -> None:
    """A file, or a server and the database on it."""
    check_database_url(url)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (f"mysql://u:{CANARY}@h/d", "must start with sqlite:/// or postgresql://"),
        (f"postgres://u:{CANARY}@h/d", "must start with sqlite:/// or postgresql://"),
        (f"postgresql+psycopg2://u:{CANARY}@h/d", "must start with sqlite:/// or postgresql://"),
        (CANARY, "must start with sqlite:/// or postgresql://"),
        ("sqlite://", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        (f"sqlite://{CANARY}/x", "must name a file"),
        (f"sqlite:///{CANARY}/", "must name a file"),
        (f"sqlite:///{CANARY}?mode=ro", "must name a file"),
        (f"postgresql://u:{CANARY}@h", "must name host and database"),
        (f"postgresql://u:{CANARY}@h/", "must name host and database"),
        (f"postgresql://u:{CANARY}@h:port/d", "must name host and database"),
        (f"postgresql://u:{CANARY}/x@h/d", "must name host and database"),
        (f"postgresql://u:{CANARY}@x@h/d", "must name host and database"),
        (f"postgresql://{CANARY} h/d", "must name host and database"),
    ],
)
def test_another_database_is_refused_without_being_repeated(url: str, problem: str) -> None:
    """The message shows a right URL, and nothing of the wrong one."""
    with pytest.raises(ValueError, match=problem) as caught:
        check_database_url(url)
    assert CANARY not in str(caught.value)
