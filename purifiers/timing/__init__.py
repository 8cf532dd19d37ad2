"""Speed and strength of the suite's code compared with other libraries and with plain loops."""
