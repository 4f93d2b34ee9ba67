"""Settings as frozen dataclasses, parsed once at the edge. Knows no component that uses them."""
