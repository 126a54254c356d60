"""Long attacks with seeds and counts: hostile input (``make fuzz``) and failing systems (``make faults``)."""
