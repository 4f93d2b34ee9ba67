"""The storage manager: L1 and the L2 tiers as one, and the controllers that move objects between them."""
