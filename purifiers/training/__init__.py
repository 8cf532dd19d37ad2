"""Training recipes for classifiers: one recipe per file."""
