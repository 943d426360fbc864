"""Networks on an allow-list, and the bundles that carry their weights."""
