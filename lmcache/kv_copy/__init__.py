"""Pages of the engine to and from slots of the pool, per device. Knows bytes, not their meaning."""
