"""What is not deployed: the self-hosted host, the local parts, the tools and their configuration."""
