"""What every stage runs on: Prefect tasks, Dask, a run's records, checkpoints, progress, findings."""

import os

NO_TELEMETRY = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
"""Environment variables by which Prefect, and a server it starts, report to nobody."""

# Set at import, the one thing that is: Prefect reads them when it is imported, which nothing of Quad does before.
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
