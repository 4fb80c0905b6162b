"""The self-hosted process: an ASGI application on uvicorn, one event loop, one MQTT connection."""
