"""The imperative shell: what is observed goes into a cache and a queue, plans are applied, nothing is decided here."""
