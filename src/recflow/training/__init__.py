"""Training sets that know no future, and the fit."""
