"""Drift of data, features and scores."""
