"""What goes over the wire to model servers and back, read into facts. Pure: values in, values out; nothing here records.

``asked`` and ``answer`` are the facts; ``ollama`` and ``openai`` read one dialect each; ``body`` cuts bytes into the objects that
they read. The wrapper of a client and the proxy use the same readers, so that equal calls give equal numbers.
"""
