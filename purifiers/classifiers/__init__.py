"""Classifiers: one architecture per file, named in declarations by the file name."""
