"""NATS JetStream, for the host and the tools: the only room that connects to it. It may import the settings."""
