"""Where datasets in the canonical Parquet layout come from."""
