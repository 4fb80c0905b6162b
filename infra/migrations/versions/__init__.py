"""One module for each step, up and down; the number in its name is its revision."""
