"""Every random choice is seeded by what it is for: no generator state has to be kept or restored."""

import hashlib


def seed_of(*parts: object) -> int:
    """A 63-bit seed of what a random choice is for: no state to carry over a resume."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1
