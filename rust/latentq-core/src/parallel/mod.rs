//! All threading of the crate: [`for_each_chunk`] for disjoint chunks of one buffer, [`Task`] for one background job, and
//! [`Threads`] for a queue of jobs.
//!
//! No thread outlives its call or its owner. `for_each_chunk` joins its threads before it returns. A `Task` and `Threads`
//! run in the background (a loader prepares batches while the model trains, a writer compresses one shard while the next
//! is filled) and are joined when their owner drops them. A forked child has none of these threads: there, waiting for a
//! job is an error and dropping its owner does nothing, so both fork and spawn work.

mod task;
mod threads;

use std::sync::Mutex;
use std::thread;

pub use task::Task;
pub use threads::{Job, Threads};

/// Calls `work(i, chunk)` once for every chunk `i` of `chunk_len` items of `out` (the last may be shorter), on up to
/// `threads` threads. A thread takes the next chunk when it is free, which balances uneven work.
///
/// With one thread or one chunk, everything runs on the calling thread.
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
            // `work` does not run under this lock, so a panic cannot poison it.
            let next = chunks.lock().ok().and_then(|mut chunks| chunks.next());
            let Some((index, chunk)) = next else { return };
            work(index, chunk);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // If the system refuses another thread, the existing threads do the work.
            let _ = thread::Builder::new().spawn_scoped(scope, run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::for_each_chunk;

    #[test]
    fn every_chunk_is_visited_once() {
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
