"""Long attacks with seeds and counts: hostile input (``make fuzz``) and failing systems (``make faults``)."""

from surgeon.support.e3nn_compat import import_e3nn

import_e3nn()  # the oldest does not import by itself, and lies where ase does
