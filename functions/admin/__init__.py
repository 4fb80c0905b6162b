"""What an administrator can ask and change. May import `events`, `s3`, `stored`, `cameras`, `fleet`, `mqtt`, `web`."""
