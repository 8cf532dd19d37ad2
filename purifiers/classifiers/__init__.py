"""Classifiers: one architecture per file; the file's name is its name in the declarations."""
