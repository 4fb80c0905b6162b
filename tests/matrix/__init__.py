"""`make matrix`: one contract suite over object stores, one over MQTT brokers; writes docs/compatibility.md."""
