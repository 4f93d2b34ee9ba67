"""`lmcache bench server`: a synthetic engine against a running server; every byte is checked."""
