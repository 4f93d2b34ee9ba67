"""The wire protocol: typed messages and their frames. No socket here, and nothing executable in a message."""
