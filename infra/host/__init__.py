"""The self-hosted process: one event loop, an HTTP server on it, one MQTT connection."""
