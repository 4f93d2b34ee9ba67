"""L1: the objects in the shared memory pool. Slots, keys, locks, eviction, recovery; no socket, no thread."""
