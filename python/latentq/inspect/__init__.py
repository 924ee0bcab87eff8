"""Looking at datasets: verify, decode, measure."""
