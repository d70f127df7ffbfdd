"""Pre-training on profiles' histories: data, tokens, decoder, releases."""
