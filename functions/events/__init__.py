"""Bytes from a store become what is to be done, and what became of it. Pure: imports pure modules only."""
