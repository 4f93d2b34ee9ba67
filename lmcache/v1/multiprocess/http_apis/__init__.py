"""HTTP endpoints of the server: each module `*_api.py` with a `router` is found and served."""
