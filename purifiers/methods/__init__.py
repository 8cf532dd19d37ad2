"""Purifiers and other defences of the input: one method per file."""
