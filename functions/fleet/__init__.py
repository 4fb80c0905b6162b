"""Who has which file: what devices report, and which file each follows. May import `events`, `s3`, `stored`, `web`."""
