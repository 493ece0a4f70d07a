"""Services that are metered, as a user of the package would write them."""
