"""``tally keyd``: the epoch keys of one log in a process of another user, and the client that a writer asks instead of files."""
