"""The host as somebody would write it for Node."""
