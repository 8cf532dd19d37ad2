"""Audit of one defence: its accuracy under the strongest attacks that fit its traits."""
