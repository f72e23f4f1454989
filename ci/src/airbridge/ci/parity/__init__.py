"""Version parity: every place that names a version, an image or a digest says the same, or is reported with file and line."""
