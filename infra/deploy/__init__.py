"""How bucketbell gets to those who use it, one folder for each way; no part of what they install."""
