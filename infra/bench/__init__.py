"""Measures what bucketbell promises, each figure as a ratio of two sides measured in one run: `make bench`."""
