"""Errors, files, messages, devices and random streams: what every other part may use."""
