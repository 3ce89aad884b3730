"""A web shop's order processing: the demo that ``make demo`` runs. Begin reading in ``app.py``."""
