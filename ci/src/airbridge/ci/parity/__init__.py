"""Version parity: every place that names a version, an image or a digest agrees, or is reported with file and line."""
