"""What one job does: a module per stage, each with ``run(folder, spec, context) -> Outcome``."""
