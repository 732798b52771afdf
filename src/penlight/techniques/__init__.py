"""The six questions, a package each; they do not import one another."""
