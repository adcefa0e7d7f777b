"""Work that cells have in common, kept by what it depends on: in memory first, then in the cache folder."""
