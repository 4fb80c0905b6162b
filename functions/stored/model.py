"""Pure: the broker settings that people store, and what is wrong with those that they send."""

from __future__ import annotations

from typing import Annotated
from unicodedata import category

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from functions.settings.addresses import MAX_HOST_CHARACTERS, MAX_PORT, parse_host, parse_topic_prefix

MAX_PREFIX_CHARACTERS = 128  # AWS IoT Core takes 256 bytes of topic; ours go on behind the prefix
MAX_USERNAME_CHARACTERS = 256
MAX_PASSWORD_CHARACTERS = 4096  # MQTT 5 §1.5.6 has room for 65535 bytes; the longest in use are signed tokens
MAX_PROBLEMS = 50
MAX_FIELD_CHARACTERS = 64

DOCUMENT = "document"  # the "field" of a problem with the whole

# By field: what would be right.
_RIGHT = {
    DOCUMENT: "a JSON object of settings",
    "broker_host": "a host name in ASCII or an IPv4 or IPv6 address, e.g. broker.local, 192.0.2.7 or ::1",
    "broker_port": f"an integer from 1 to {MAX_PORT}, e.g. 1883, or 8883 with TLS",
    "username": f"text of 1 to {MAX_USERNAME_CHARACTERS} characters, none of them a control character, or null",
    "password": f"text of 1 to {MAX_PASSWORD_CHARACTERS} characters, none of them a control character, "
    "together with a username; "
    "null clears it, leaving it out keeps the stored one",
    "use_tls": "true or false",
    "topic_prefix": f"1 to {MAX_PREFIX_CHARACTERS} characters without + # or spaces, "
    "beginning with neither / nor $, e.g. unifi/protect",
    "qos": "the integer 0, 1 or 2",
    "enabled": "true or false",
    "discovery_enabled": "true or false",
    "discovery_prefix": f"1 to {MAX_PREFIX_CHARACTERS} characters without + # or spaces, "
    "beginning with neither / nor $, e.g. homeassistant",
    "retain_messages": "true or false",
}

# By pydantic's type of error: what is wrong. The rest is "is not right".
_WRONG = {
    "missing": "is missing",
    "extra_forbidden": "is not a setting",
    "int_type": "is not an integer",
    "bool_type": "is neither true nor false",
    "string_type": "is not text",
    "string_unicode": "is not valid Unicode text",
    "string_too_short": "is empty",
    "string_too_long": "is too long",
    "too_short": "is empty",
    "too_long": "is too long",
    "greater_than_equal": "is too small",
    "less_than_equal": "is too large",
    "json_invalid": "is not JSON",
    "model_type": "is not an object",
    "model_attributes_type": "is not an object",
}


PASSWORD_NEEDED = {
    "field": "password",
    "problem": "is missing, and the stored one is for another host, port, TLS or user name",
    "expected": "the password of this broker and user, or null for none",
}


def _host(text: str) -> str:
    try:
        return parse_host(text)
    except ValueError:
        raise PydanticCustomError("host", "is not a valid host name or address") from None


def _topic_levels(text: str) -> str:
    try:
        return parse_topic_prefix(text, allows_spaces=False)  # Home Assistant refuses a topic with a space
    except ValueError as error:
        raise PydanticCustomError("topic", "{problem}", {"problem": str(error)}) from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("control_character", "holds a control character")
    return text


Prefix = Annotated[str, Field(min_length=1, max_length=MAX_PREFIX_CHARACTERS), AfterValidator(_topic_levels)]


class MqttConfig(BaseModel):
    """The stored settings without the password: which broker, and how camera events go there.

    Strict: `true` and `"1"` are no numbers. A slash at the end of a prefix is dropped, IPv6 loses its brackets.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    broker_host: Annotated[str, Field(min_length=1, max_length=MAX_HOST_CHARACTERS), AfterValidator(_host)] = Field(
        description="Name or address of the broker.", examples=["broker.local"]
    )
    broker_port: int = Field(default=1883, ge=1, le=MAX_PORT, description="Its TCP port; with TLS commonly 8883.")
    username: (
        Annotated[str, Field(min_length=1, max_length=MAX_USERNAME_CHARACTERS), AfterValidator(_printable)] | None
    ) = Field(default=None, description="User name at the broker.")
    use_tls: bool = Field(default=False, description="Whether to connect by TLS.")
    topic_prefix: Prefix = Field(
        description="Camera events go to `<topic_prefix>/camera/<camera_id>/event`.", examples=["unifi/protect"]
    )
    qos: int = Field(default=1, ge=0, le=2, description="Quality of service of camera messages: 0, 1 or 2.")
    enabled: bool = Field(default=True, description="Whether to connect and publish at all.")
    discovery_enabled: bool = Field(default=False, description="Whether Home Assistant is told of the cameras.")
    discovery_prefix: Prefix = Field(default="homeassistant", description="Home Assistant's discovery prefix.")
    retain_messages: bool = Field(default=False, description="Whether the broker keeps each camera's latest event.")


class MqttConfigChange(MqttConfig):
    """What a person sends: the settings, and perhaps a password.

    A `password` that is not among `model_fields_set` keeps the stored one; None clears it.
    """

    password: Annotated[SecretStr, Field(min_length=1, max_length=MAX_PASSWORD_CHARACTERS)] | None = Field(
        default=None, description="Password at the broker. Left out: the stored one stays. Null: it is cleared."
    )

    @field_validator("password")
    @classmethod
    def _password(cls, password: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if password is None:
            return None
        # A service on the port that is tried could take its lines for commands.
        if any(category(c) == "Cc" for c in password.get_secret_value()):
            raise PydanticCustomError("control_character", "holds a control character")
        if any("\ud800" <= c <= "\udfff" for c in password.get_secret_value()):
            raise PydanticCustomError("surrogate", "is not valid Unicode text")
        if info.data.get("username", "") is None:
            raise PydanticCustomError("alone", "needs a username")
        return password

    @property
    def config(self) -> MqttConfig:
        """The settings without the password."""
        return MqttConfig.model_construct(**self.model_dump(include=set(MqttConfig.model_fields)))

    @property
    def login(self) -> tuple[str, int, bool, str | None]:
        """What a password belongs to: sent to anybody else, it could be fetched that way."""
        return self.broker_host.casefold(), self.broker_port, self.use_tls, self.username


def problems(error: ValidationError) -> list[dict[str, str]]:
    """Return for each problem its `field`, what is wrong (`problem`), and what would be right (`expected`).

    Nothing of a value is in it. At most `MAX_PROBLEMS`, in the order in which the settings are declared.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    return [_problem(detail) for detail in details[:MAX_PROBLEMS]]


def _problem(detail: ErrorDetails) -> dict[str, str]:
    field = str(detail["loc"][0]) if detail["loc"] else DOCUMENT
    kind = detail["type"]
    custom = kind in {"host", "topic", "control_character", "surrogate", "alone"}
    expected = _RIGHT.get(field, "one of " + ", ".join(MqttConfigChange.model_fields))
    return {
        "field": _shown(field),
        "problem": detail["msg"] if custom else _WRONG.get(kind, "is not right"),
        "expected": expected,
    }


def _shown(name: str) -> str:
    """Return a stranger's name of a field as it may be logged and printed: short, and in one line."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return plain if len(plain) <= MAX_FIELD_CHARACTERS else f"{plain[:MAX_FIELD_CHARACTERS]}…"
