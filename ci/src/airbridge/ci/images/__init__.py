"""The two images: their context, their build, what is inside them."""
