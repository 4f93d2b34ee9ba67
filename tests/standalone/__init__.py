"""The engine over synthetic pages, without its process."""
