"""Results that cells share, by a key of their inputs: in memory first, then in the cache folder."""
