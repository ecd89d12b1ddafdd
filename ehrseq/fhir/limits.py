"""How much a source may ask for before it is refused: each cap gives a quarantine entry, never a crash."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Caps on what is read. The defaults are far above what FHIR exports hold.

    >>> Limits().output(compressed=1_000), Limits().output(compressed=1 << 30) > 1 << 38
    (268435456, True)
    """

    depth: int = 200
    """Brackets within brackets in a document that is read in pieces (FHIR needs about 30). A line, or a document small
    enough to be decoded whole, is bounded by its decoder instead: at most about 1,000."""
    record_bytes: int = 64 << 20
    """One resource. A document that is larger is read in pieces: the entries of a bundle, the items of a list."""
    ratio: int = 300
    """Decompressed bytes per byte on disk, all layers together."""
    free_bytes: int = 256 << 20
    """Decompressed bytes of one file that need no ratio: what is read in seconds does no harm."""
    decompressed_bytes: int = 1 << 40
    """Decompressed bytes of one file, whatever its size."""
    members: int = 100_000
    """Members of one archive."""
    archive_levels: int = 2
    """Archives within archives: 2 means that an archive may hold others, and these no more."""
    bundle_levels: int = 10
    """Bundles within bundles."""

    def output(self, compressed: int) -> int:
        """The decompressed bytes that a file of this size may give."""
        return min(self.decompressed_bytes, max(self.free_bytes, self.ratio * compressed))


DEFAULT_LIMITS = Limits()
