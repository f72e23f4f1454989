"""Residency of data: settings of the catalogue, and values in the region's bucket."""
