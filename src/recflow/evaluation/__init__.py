"""Candidates compared on held-out days, and the gate."""
