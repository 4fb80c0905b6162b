"""Who has which file: what devices report, and which file each of them follows. May import `events` and `web`."""
