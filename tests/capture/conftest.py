"""Clients that a module's tests left open are collected at its end, and not in the middle of somebody else's test."""

from __future__ import annotations

import gc
import warnings

import pytest


@pytest.fixture(scope="module", autouse=True)
def _collected():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
