"""What devices ask for: their files, the manifest, and their next token. May import `s3`, `web`, `events`."""
