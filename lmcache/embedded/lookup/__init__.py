"""How a scheduler asks the engines of its ranks what they hold."""
