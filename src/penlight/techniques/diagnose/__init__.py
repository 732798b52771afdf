"""What of a network works, what does not, and what can go."""
