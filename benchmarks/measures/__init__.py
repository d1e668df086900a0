"""One module for each measure: its roles (the code of other processes), its peers, its figures and their units."""
