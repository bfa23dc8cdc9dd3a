"""Feeds in: adapters from a shop's own files to canonical rows, and the shop simulator."""
