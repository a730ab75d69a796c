"""What leaves the log, and on which record."""
