from tests.faults.conftest import base, lab

__all__ = ["base", "lab"]
