"""What an administrator can ask and change. May import `stored`, `cameras`, `mqtt`, `web`."""
