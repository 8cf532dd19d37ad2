"""Stages: one module each, with a function ``run(folder, spec, context) -> Outcome``."""
