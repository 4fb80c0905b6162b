"""Writes what is generated in the documentation."""
