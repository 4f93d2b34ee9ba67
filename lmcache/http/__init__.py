"""What every HTTP API of ours is served with: discovery of endpoints, the guard before them, errors, TLS, the listener.

Knows no engine, no endpoint and no command line.
"""
