"""The server process: ZMQ loop, HTTP app, discovery of endpoints, lifecycle. Never imports torch."""
