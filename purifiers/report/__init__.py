"""Write tables, figures, claims and the status page from stored scores. Never imports torch."""

from purifiers.core.backend import drop_missing_backend

drop_missing_backend()  # before a module of this package imports matplotlib
