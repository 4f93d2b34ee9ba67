"""The client half of the server mode, for any engine: membership, transfers, lookups. Knows no vLLM, no torch."""
