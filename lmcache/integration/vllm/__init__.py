"""The vLLM integration: connectors at the names vLLM imports, and what names an engine's KV."""
