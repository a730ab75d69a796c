"""Where the foreign vectors are; tests that need them are skipped with a reason where they are not."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"


def need(name: str) -> Path:
    """A file or folder of the foreign vectors."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"foreign vectors are not here: ../shared/vectors/{name}")
    return path
