"""Speed claims, measured where they are made: figures of one run, compared as ratios."""
