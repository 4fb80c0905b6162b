"""The host's side of HTTP: connections, the server, limits. May import `functions.web`; knows nothing of MQTT."""
