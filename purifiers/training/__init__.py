"""Training recipes: one way of making a classifier per file."""
