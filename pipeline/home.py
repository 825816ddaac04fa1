"""Where the program keeps files between runs: weights it fetched, engines it built. Pure."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """Return the folder RACKFOCUS_HOME, else ~/.cache/rackfocus. It may not exist yet."""
    chosen = os.environ.get("RACKFOCUS_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "rackfocus"
