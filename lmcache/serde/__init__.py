"""Serdes: bytes to bytes, for objects on their way to and from an adapter. Know no adapter."""
