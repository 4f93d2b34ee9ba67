"""The command line: one file per command; composes the server mode."""
