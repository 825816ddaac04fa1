"""Makes the picture of the README: `python docs/pictures/make.py` writes docs/pictures/shapes.jpg.

One frame of the synthetic scene through the shipped model, by the program's own command line.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PICTURE: Final = Path(__file__).with_name("shapes.jpg")
# Ten shapes, one of them half hidden and one cut by the picture's edge.
SOURCE: Final = "synthetic:shapes?start=150&frames=1"
QUALITY: Final = 85
MAX_BYTES: Final = 250_000


def main() -> int:
    """Write the picture; return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        sink = f"{folder}/%06d.jpg"
        command = [sys.executable, str(ROOT / "run.py"), "run", SOURCE, "-o", sink]
        command += ["--device", "cpu", "--quiet", "--set", f"images.quality={QUALITY}"]
        subprocess.run(command, check=True)
        data = (Path(folder) / "000000.jpg").read_bytes()
    if len(data) > MAX_BYTES:
        sys.stderr.write(f"{len(data)} bytes, more than {MAX_BYTES}: lower QUALITY\n")
        return 1
    PICTURE.write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
