"""Write tables, figures, claims and the status page from stored scores. Never imports torch."""
