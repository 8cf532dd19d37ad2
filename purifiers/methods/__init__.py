"""Purifiers and other defences on the input: one method per file."""
