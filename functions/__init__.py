"""The deployed code: entries (notify), the pure core (events, routes) and the adapters (publisher, storage)."""
