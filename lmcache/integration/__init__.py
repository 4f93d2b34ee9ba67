"""Engine integrations: what runs inside an engine's processes. Never imports the server."""
