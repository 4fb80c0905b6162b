"""The usual MQTT publisher, which ours is compared with: paho, its network thread, and a wait for each PUBACK."""

from __future__ import annotations

import json

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from infra.bench.rig import TOPIC

ACK_SECONDS = 5.0


class ThreadedPublisher:
    """One client, which its thread keeps connected."""

    def __init__(self, port: int, keepalive_seconds: int) -> None:
        """Connects. Raises `OSError`."""
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.connect("127.0.0.1", port, keepalive=keepalive_seconds)
        self._client.loop_start()

    def publish(self, filename: str) -> bool:
        """Publish once; whether the broker has confirmed it within `ACK_SECONDS`."""
        info = self._client.publish(TOPIC, json.dumps({"filename": filename}), qos=1)
        try:
            info.wait_for_publish(ACK_SECONDS)
        except RuntimeError:  # paho knows that there is no connection; it keeps the message for the next
            return False
        return info.is_published()

    def close(self) -> None:
        """End the thread, and the connection."""
        self._client.disconnect()
        self._client.loop_stop()
