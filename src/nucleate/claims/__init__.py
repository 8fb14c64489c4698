"""The paper's claims, judged from the tables of finished runs."""
