"""Endpoints that every process of ours serves."""
