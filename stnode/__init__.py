"""stnode: a Syncthing-compatible node whose folders live in an S3 bucket."""

__version__ = "0.1.0"
