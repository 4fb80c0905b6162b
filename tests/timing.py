"""How long tests wait, so that a slow and busy machine fails none: nothing here is a promise of the product."""

from __future__ import annotations

PATIENCE_SECONDS = 30.0
"""For what must happen: only what is broken takes so long, so that nobody waits for it otherwise."""

SLACK_SECONDS = 3.0
"""What a machine with a stolen core may add to a promised time. What breaks the promise must take longer than both."""
