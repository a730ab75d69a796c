"""The edges where events come in."""
