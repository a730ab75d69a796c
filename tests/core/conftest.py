"""Whatever hashes runs twice: with hashlib, the reference, and with the extension where it was built."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator

import pytest

from tallystick.core import merkle

BUILT = merkle.native


@pytest.fixture(scope="module", params=["hashlib", "libcrypto"])
def hashing(request: pytest.FixtureRequest) -> Iterator[str]:
    """``pytestmark = pytest.mark.usefixtures("hashing")`` for a whole module."""
    if request.param == "libcrypto" and BUILT is None:
        text = "tallystick.core._sha256 was not built or finds no libcrypto: only hashlib was tested"
        if os.environ.get("CI") == "true" and shutil.which("cc"):
            pytest.fail(text)
        warnings.warn(pytest.PytestWarning(text), stacklevel=1)
        pytest.skip(text)
    merkle.native = BUILT if request.param == "libcrypto" else None
    yield request.param
    merkle.native = BUILT
