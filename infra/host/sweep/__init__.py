"""The sweep: what no event has told, the bucket itself does."""
