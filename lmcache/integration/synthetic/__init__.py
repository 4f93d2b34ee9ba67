"""An engine without a model: the client half over plain memory, for measurements against a real server."""
