"""Prefect flows: they order the stages and hold no maths and no file formats."""

import quad_tasks.runtime  # noqa: F401 (switches Prefect's telemetry off, before anything imports Prefect)
