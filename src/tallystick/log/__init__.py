"""The protocols in time: create, append, recover, read, prove, verify. Stores, keys and vault are handed in."""
