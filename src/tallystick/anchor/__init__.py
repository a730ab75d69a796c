"""Anchors: where a closing checkpoint goes that is no witness: a mailbox, a folder elsewhere, a timestamp authority."""
