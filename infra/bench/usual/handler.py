"""S3 → SQS → MQTT the usual way: Powertools' decorators, settings by pydantic, paho with its network thread."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote_plus, urlsplit

import paho.mqtt.client as mqtt
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

ACK_SECONDS = 5.0


class Environment(BaseSettings):
    """The environment."""

    mqtt_url: str
    mqtt_username: str | None = None
    mqtt_password: SecretStr | None = None
    mqtt_qos: int = Field(default=1, ge=0, le=2)
    topic_prefix: str = "iotsupport"


settings = Environment()  # type: ignore[call-arg] # from the environment, which mypy does not know
logger = Logger(service="usual")
metrics = Metrics(namespace="usual", service="usual")


def connect() -> mqtt.Client:
    """Begin to connect; the thread goes on with it."""
    url = urlsplit(settings.mqtt_url)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    if settings.mqtt_username is not None and settings.mqtt_password is not None:
        client.username_pw_set(settings.mqtt_username, settings.mqtt_password.get_secret_value())
    if url.scheme == "mqtts":
        client.tls_set()
    client.connect(url.hostname or "", url.port or 1883)
    client.loop_start()
    return client


client = connect()


@logger.inject_lambda_context
@metrics.log_metrics(capture_cold_start_metric=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Announce each upload of an SQS batch; what failed comes again."""
    del context
    failures = []
    for message in event["Records"]:
        try:
            for record in json.loads(message["body"])["Records"]:
                publish(unquote_plus(record["s3"]["object"]["key"]))
            metrics.add_metric(name="Published", unit=MetricUnit.Count, value=1)
        except Exception:  # whatever it was, this message comes again
            logger.exception("publish failed")
            metrics.add_metric(name="Failed", unit=MetricUnit.Count, value=1)
            failures.append({"itemIdentifier": message["messageId"]})
    return {"batchItemFailures": failures}


def publish(key: str) -> None:
    """Publish, and wait for the broker's acknowledgement."""
    kind, _, filename = key.partition("/")
    topic = f"{settings.topic_prefix}/updates/{kind}"
    info = client.publish(topic, json.dumps({"filename": filename}), settings.mqtt_qos)
    info.wait_for_publish(ACK_SECONDS)
    if not info.is_published():
        raise TimeoutError(f"{topic}: not acknowledged")
    logger.info("published", extra={"topic": topic, "object_key": key})
