"""The manifests of a workspace, one frozen model each: what makes stored data visible, and what is said of it.

Every model carries the number of its format; `storage.manifest` writes and reads them. A manifest of another format is
read by its model's `upgrade` or refused by name, never misread. What may differ between two runs of the same work (who,
when) stands in the fields that `VOLATILE` names and is outside the digest. Keys are those of the workspace
(`storage.keys`), digests are SHA-256 in hex, tokens are counted by the pool version's tokenizer.
"""
