"""After a break-in."""
