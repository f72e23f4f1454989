"""What stays in a region: settings of the catalogue, and values in the region's bucket."""
