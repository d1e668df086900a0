"""One module a measure: its roles (what runs in other processes), its peers, its figures and their units."""
