"""Records of finished cells, failures of others, and the identities and leases that belong to them."""
