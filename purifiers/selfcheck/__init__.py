"""Check the suite on one device in minutes: parity, strength, speed, throughput, one table."""

from purifiers.core.backend import drop_missing_backend

drop_missing_backend()  # before a module of this package imports matplotlib
