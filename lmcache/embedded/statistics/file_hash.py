"""Writes the chunk hashes of every lookup to files, to be evaluated elsewhere. Unique means within one lookup."""

from __future__ import annotations

import json
import logging

from lmcache.embedded.statistics.rotating_files import RotatingFiles

logger = logging.getLogger(__name__)


class FileHash:
    """A `CountingStrategy`. What cannot be written is lost and counted; the log tells of the first alone."""

    name = "file_hash"
    is_lasting = True

    def __init__(self, files: RotatingFiles) -> None:
        self._files = files
        self._num_failed = 0

    def count(self, lookup_id: str, at_s: float, cache_salt: str, digests: tuple[bytes, ...]) -> int:
        hashes = [f"0x{digest.hex()}" for digest in digests]
        line = json.dumps({"timestamp": at_s, "lookup_id": lookup_id, "chunk_hashes": hashes}) + "\n"
        try:
            self._files.append(line.encode())
        except OSError as error:
            if not self._num_failed:
                logger.warning("chunk hashes cannot be written to %s, and are lost: %s", self._files.folder, error)
            self._num_failed += 1
        return len(set(digests))

    def clear(self) -> None:
        """What was written stays."""
        self._num_failed = 0

    def figures(self) -> dict[str, object]:
        return {
            "file_count": self._files.num_files,
            "current_file_size": self._files.size_bytes,
            "file_max_count": self._files.num_files_max,
            "output_dir": self._files.folder,
            "failed_writes": self._num_failed,
        }

    def close(self) -> None:
        self._files.close()
