"""Cameras' detection events and Home Assistant's discovery. May import `events`, `mqtt`, `s3`, `web`."""
