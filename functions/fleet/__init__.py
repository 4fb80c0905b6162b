"""Who has which file: what devices report, and which file each follows. May import `events` and `s3`."""
