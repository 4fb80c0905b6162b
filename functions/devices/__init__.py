"""What devices ask for and report: files, the manifest, tokens. May import `s3`, `web`, `events`, `fleet`, `stored`."""
