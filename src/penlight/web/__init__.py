"""Front ends in a browser: `site.py` writes static pages from an atlas and needs no model."""
