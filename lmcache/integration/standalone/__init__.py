"""The in-process mode without an inference engine: one rank over synthetic pages, for operators and quick tests."""
