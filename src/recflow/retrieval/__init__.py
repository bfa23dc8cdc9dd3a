"""Candidates out of catalogues that are too large to score whole for each request."""
