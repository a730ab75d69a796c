"""The card of a log."""
