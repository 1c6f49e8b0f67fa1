"""What `flows/refresh_pool.py` orders: the starting model, ingest, embed, cluster, lay out arms."""
