"""Events from NATS JetStream, for one host or several that share the work; loaded only with `NATS_URL`."""
