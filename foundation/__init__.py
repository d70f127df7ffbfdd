"""Pre-training on profiles' histories: data, tokens, decoder, releases."""

import os

# OpenMP's idle threads spin before they sleep, by libgomp's default for about a millisecond. Training is made of
# thousands of short parallel regions: beside a neighbour that wants a core too, that default is 10 times slower than
# this, and alone it is a tenth faster. libgomp reads it once, as torch is loaded. See benchmarks/results/README.md.
TRAINING_SPIN_COUNT = "3000"
os.environ.setdefault("GOMP_SPINCOUNT", TRAINING_SPIN_COUNT)
