"""What every long run shares: ranks, listing, units, finishing."""
