"""The core: what every part stands on."""
