"""Insert branches, train through their handle, strip or fold them, renew what is stale. Where, is found elsewhere."""
