"""The reference device: hears a notification, pulls the file, verifies it, puts it in place."""
