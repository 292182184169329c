"""Where the package's configs are."""

from __future__ import annotations

from pathlib import Path

PACKAGED = Path(__file__).parents[1] / "conf"


CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[3] / "conf"
