"""Reports on datasets: verification, decoded pictures, errors of quantizers, bytes."""
