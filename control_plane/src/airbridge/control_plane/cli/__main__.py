"""``python -m airbridge.control_plane.cli``."""

from __future__ import annotations

from airbridge.control_plane.cli.app import main

if __name__ == "__main__":
    main()
