"""What devices ask for: their files, and the manifest. May import `s3`, `web`, `events`."""
