"""A KV cache for LLM inference that lives outside the engine.

Importing the package loads nothing: every entry point imports what it needs.
"""
