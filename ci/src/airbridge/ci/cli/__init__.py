"""The `airbridge-ci` command line."""

from airbridge.ci.cli.main import main

__all__ = ["main"]
