"""Requests, replies, one router and bearer tokens. Knows no server and no gateway."""
