"""The engine inside an inference process: a private pool, the tiers below it, and lookups between processes."""
