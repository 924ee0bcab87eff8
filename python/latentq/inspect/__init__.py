"""Look at datasets: verify them, decode them to pictures, measure quantizers, count bytes."""
