"""What builds and proves the project; no part of the product."""
