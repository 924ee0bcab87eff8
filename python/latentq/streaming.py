"""Public alias: `LatentStreamingDataset`, implemented in `latentq.reading.streaming`."""

from latentq.system.extras import needed_for

with needed_for("latentq.streaming"):
    from latentq.reading.streaming import LatentStreamingDataset, RawUint8, register_raw_uint8

__all__ = ["LatentStreamingDataset", "RawUint8", "register_raw_uint8"]
