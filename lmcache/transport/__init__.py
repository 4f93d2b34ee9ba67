"""ZMQ under the protocol: a synchronous server loop and a client with deadlines. Knows no meaning."""
