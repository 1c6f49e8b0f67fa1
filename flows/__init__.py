"""Prefect flows: they order the stages and hold no maths and no file formats."""
