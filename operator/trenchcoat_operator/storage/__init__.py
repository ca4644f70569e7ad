"""The only place that talks to the S3 store."""
