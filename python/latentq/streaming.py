"""Public alias: `LatentStreamingDataset`, implemented in `latentq.reading.streaming`."""

from latentq.reading.streaming import LatentStreamingDataset, RawUint8, register_raw_uint8

__all__ = ["LatentStreamingDataset", "RawUint8", "register_raw_uint8"]
