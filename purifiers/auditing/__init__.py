"""Audit of one defence: its accuracy under the strongest attacks that fit its traits."""

from purifiers.core.backend import drop_missing_backend

drop_missing_backend()  # before a module of this package imports matplotlib
