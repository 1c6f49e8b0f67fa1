"""The pipeline's steps, a folder a flow: each reads, computes by `core`, and writes through `storage`."""
