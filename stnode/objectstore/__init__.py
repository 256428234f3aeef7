"""The dumb layer: keys and bytes in a bucket, a directory or memory. The contract stands in `base.py`; `registry.open_store` opens one."""
