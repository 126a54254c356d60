"""Records as one page to look at: a run, a comparison, a certificate. Nothing is measured here."""
