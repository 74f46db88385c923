"""Files that one process writes and another reads, on the same backend and on another."""
