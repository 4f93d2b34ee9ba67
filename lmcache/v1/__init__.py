"""Thin front doors at the paths the documents print."""
