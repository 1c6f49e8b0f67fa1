"""What `flows/fit_influence.py` orders: reference tables, EK-FAC factors and the direction."""
