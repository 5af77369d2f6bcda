"""What is compared, on what, and what is right: one task a file."""
