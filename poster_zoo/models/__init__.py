"""The architectures, one file each. Importing this registers their factories with timm; it builds no model."""
