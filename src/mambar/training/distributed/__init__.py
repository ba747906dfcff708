"""Process groups, gradient reduction and sharded parameters."""
