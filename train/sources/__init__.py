"""Where training data comes from: one file per layout."""
