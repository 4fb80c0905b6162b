"""The self-hosted process: one event loop, one HTTP server, one MQTT connection."""
