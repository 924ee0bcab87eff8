//! The only threading of the crate: scoped threads over disjoint chunks of one buffer, a task that its owner waits for, and
//! [`Threads`] that work ahead of theirs. None outlives its call or its owner, and no thread is needed by a process that was
//! forked, so fork and spawn both work. The last two outlive the call that starts them, since their work has to go on while
//! their owner does something else: a loader prepares batches while the model learns, a writer fills the next shard. Their
//! owner ends them, and in a forked child, which has none of them, what is asked of them is an error or nothing.

mod task;
mod threads;

use std::sync::Mutex;
use std::thread;

pub use task::Task;
pub use threads::{Job, Threads};

/// Calls `work(i, chunk)` once for every chunk of `chunk_len` items of `out` (the last may be shorter), `i` counting the
/// chunks, on up to `threads` threads. Each thread takes the next chunk when it is free, so uneven work balances.
///
/// With one thread (or one chunk) everything runs on the caller's.
pub fn for_each_chunk<T, F>(out: &mut [T], chunk_len: usize, threads: usize, work: F)
where
    T: Send,
    F: Fn(usize, &mut [T]) + Sync,
{
    let chunk_len = chunk_len.max(1);
    let threads = threads.min(out.len().div_ceil(chunk_len));
    let chunks = out.chunks_mut(chunk_len).enumerate();
    if threads <= 1 {
        chunks.for_each(|(index, chunk)| work(index, chunk));
        return;
    }
    let chunks = Mutex::new(chunks);
    let run = || {
        loop {
            // A panic in `work` is not under this lock, so it cannot be poisoned.
            let next = chunks.lock().ok().and_then(|mut chunks| chunks.next());
            let Some((index, chunk)) = next else { return };
            work(index, chunk);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Where the system grants no further thread, the caller's own does the work.
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::for_each_chunk;

    #[test]
    fn every_chunk_is_visited_once_whatever_the_number_of_threads() {
        for threads in [0, 1, 2, 3, 8, 64] {
            for len in [0, 1, 2, 7, 100] {
                for chunk_len in [0, 1, 3, 200] {
                    let mut out = vec![0usize; len];
                    for_each_chunk(&mut out, chunk_len, threads, |index, chunk| {
                        for value in chunk {
                            *value += index + 1;
                        }
                    });
                    let expected: Vec<usize> = (0..len).map(|i| i / chunk_len.max(1) + 1).collect();
                    assert_eq!(out, expected);
                }
            }
        }
    }
}
