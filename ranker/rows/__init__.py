"""Request rows: a request, its history and its candidates, looked up and ready to train on."""
