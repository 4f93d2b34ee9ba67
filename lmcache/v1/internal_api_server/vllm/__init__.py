"""Endpoints of the API inside a vLLM process."""
