"""The proxy: a chokepoint for clients in any language. Bytes go through unchanged and at once; what they say is read on the side.

``sides`` are the two connections of an exchange, ``exchange`` is what happens between them, ``claims`` is what a client may say about
itself, ``own`` answers what is asked of the proxy itself (``/audit/…``), ``serve`` listens.
"""
