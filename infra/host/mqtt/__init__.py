"""The host's link to the broker and the publisher on its event loop. May import `functions.mqtt`."""
