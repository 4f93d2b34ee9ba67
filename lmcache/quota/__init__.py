"""Quotas: how many bytes each tenant may keep. Knows no tier; tiers ask who holds too much."""
