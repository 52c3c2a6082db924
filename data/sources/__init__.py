"""What rows are read from: a module a kind of source."""
