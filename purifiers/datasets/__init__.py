"""Image classification sets, one per file: a split of a data folder to uint8 arrays."""
