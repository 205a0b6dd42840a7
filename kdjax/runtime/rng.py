"""Random keys by purpose: one root key per replica, everything else folded in."""

import hashlib

import jax


def fold(key: jax.Array, *parts: str | int | jax.Array) -> jax.Array:
    """Returns `key` with names and numbers folded in, in their order.

    Args:
        key: a typed key.
        parts: names (by their SHA-256, the same on every machine) or integers.
    """
    for part in parts:
        if isinstance(part, str):
            digest = hashlib.sha256(part.encode()).digest()
            part = int.from_bytes(digest[:4], "big")  # fold_in takes 32 bits
        key = jax.random.fold_in(key, part)
    return key
