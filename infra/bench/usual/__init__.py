"""The function that ours is compared with: the same job, written as its libraries' introductions say."""
