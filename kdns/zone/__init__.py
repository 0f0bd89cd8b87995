"""RRsets, the zone store and look-ups in it."""
