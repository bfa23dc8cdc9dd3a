"""Features of users and items: ibis expressions, daily snapshots, and the way into the online store."""
