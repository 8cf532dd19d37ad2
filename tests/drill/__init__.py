"""The drill: faults at random moments and places, and whether any of them gives a wrong number."""
