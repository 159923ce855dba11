"""Where it is kept: object storage, clip sources and lists, the feature table, quarantine."""
