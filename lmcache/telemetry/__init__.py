"""Metrics, periodic threads, named steps. Knows nothing of keys or sockets."""
