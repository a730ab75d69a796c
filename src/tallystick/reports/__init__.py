"""Evidence goes out: reports over all events of a period."""
