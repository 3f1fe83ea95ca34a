"""The two kinds as users write them, and everything that names them."""
