"""Dataset file, photos, buckets and caches."""
