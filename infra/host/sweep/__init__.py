"""The sweep: the bucket is listed now and then, and what no event has announced is announced."""
