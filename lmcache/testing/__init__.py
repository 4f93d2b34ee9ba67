"""Shipped test tools: fakes that are real processes, faults at named steps, a byte oracle.

No product code uses them.
"""
