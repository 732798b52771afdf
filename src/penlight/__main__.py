"""`python -m penlight`."""

from penlight.cli import main

main()
