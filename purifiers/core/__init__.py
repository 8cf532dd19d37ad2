"""Foundations that every other package of the library imports."""
