"""Expand declarations into runs and estimate their cost. Never imports torch."""
