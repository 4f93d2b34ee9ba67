"""`python -m lmcache`: the same as the `lmcache` command."""

from __future__ import annotations

import sys

from lmcache.cli.main import main

sys.exit(main())
