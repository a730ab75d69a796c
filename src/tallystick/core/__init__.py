"""Floor 0: pure functions from bytes to values. No clock, files, environment, threads, SQLite or logging here."""
