"""Where bytes live: stores, readers, tables, ledger, manifests. No torch, no orchestration, no maths."""
