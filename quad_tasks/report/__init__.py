"""A finished run's report: `report.json` and one self-contained page."""
