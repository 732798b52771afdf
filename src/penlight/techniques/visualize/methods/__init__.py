"""The named methods: each a choice of parts, nothing more."""
