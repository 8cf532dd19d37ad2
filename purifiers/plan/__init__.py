"""From declarations to runs: what there is to do, and what it will cost. Never imports torch."""
