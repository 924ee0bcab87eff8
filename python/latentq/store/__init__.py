"""Where datasets lie: publishing whole or not at all."""
