"""The stages, in the order of the run; each file measures and checks one thing. Every file has `work(run)`."""

from gpu.harness import Stage
from gpu.stages import (
    big,
    codecs,
    codes,
    env,
    forward,
    ideas,
    loop,
    memory,
    ranks,
    reading,
    redo,
    same_bytes,
    sync,
    tests,
)

STAGES = (
    Stage("env", 15, True, env.work),
    Stage("codes", 30, True, codes.work),
    Stage("sync", 20, True, sync.work, apart=True),
    Stage("bytes", 45, True, same_bytes.work),
    Stage("nan", 15, True, redo.work, apart=True),
    Stage("oom", 30, True, memory.work, apart=True),
    Stage("tests", 40, True, tests.work),
    Stage("forward", 120, True, forward.work),
    Stage("loop", 60, True, loop.work),
    Stage("reading", 50, True, reading.work),
    Stage("codecs", 70, True, codecs.work),
    Stage("rank", 15, False, ranks.work, apart=True),
    Stage("ideas", 35, False, ideas.work),
    Stage("big", 10, False, big.work, apart=True),
)
