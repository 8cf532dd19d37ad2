"""Image classification data sets, one per file: they load a split as uint8 arrays."""
