"""Checks on a batch, the quarantine, and the report."""
