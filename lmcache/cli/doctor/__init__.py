"""`lmcache doctor`: what does not fit between a vLLM command line, its settings, this host and a server.

`reading` makes a Subject; each `checks_*` module looks at one side of it and yields findings.
"""
