"""From stored scores to tables, figures, claims and the status page. Never imports torch."""
