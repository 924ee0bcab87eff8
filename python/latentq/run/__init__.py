"""The parts that all long runs share: options, list, plan, units, finish."""
