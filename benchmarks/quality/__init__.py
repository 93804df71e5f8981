"""Does the polynomial earn its keep? Comparisons of methods on real tasks, and their report."""
