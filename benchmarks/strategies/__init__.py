"""The same short fit under each of Lightning's strategies, compared with a single process."""
