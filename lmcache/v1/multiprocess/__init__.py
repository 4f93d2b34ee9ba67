"""Front doors of the multi-process server."""
