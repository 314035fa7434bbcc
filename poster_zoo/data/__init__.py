"""Images and labels: reading, preparing and listing them."""

from __future__ import annotations

from poster_zoo.data.images import list_images, read_image
from poster_zoo.data.transforms import create_transform

__all__ = ["create_transform", "list_images", "read_image"]
