"""Who has which file: what devices report, and which file each of them follows. May import `events`, `s3`, `web`."""
