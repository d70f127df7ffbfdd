"""From raw requests to model inputs: the one library of co-training and serving."""
