"""Pure values: keys, chunk hashing, KV layout, identity, sizes. No I/O, no thread, no clock."""
