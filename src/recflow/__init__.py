"""Recommendations for e-commerce, from raw sales files to a gated model that answers."""
