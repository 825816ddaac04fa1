"""The switch that rewrites reviewed outputs: `pytest tests/golden --update-golden`."""

from __future__ import annotations


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the outputs of this run as the new references, to be reviewed",
    )
