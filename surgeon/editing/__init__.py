"""Insert branches, train through their handle, strip or fold them, and renew what an edit makes stale."""
