//! The only threading of the crate: scoped threads over disjoint chunks of one buffer, and a task that its owner waits for.
//! No pool outlives a call, and no thread is needed by a process that was forked, so fork and spawn both work.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

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

/// Work on a thread of its own, while its owner goes on. Dropped, it is waited for.
pub struct Task<T> {
    state: State<T>,
    owner: u32,
}

enum State<T> {
    Running(JoinHandle<Option<T>>),
    Done(Option<T>),
}

impl<T: Send + 'static> Task<T> {
    /// Begins `work`, or does it where the system grants no thread.
    pub fn spawn<F: FnOnce() -> T + Send + 'static>(work: F) -> Self {
        // Where no thread comes about, what it was to do must not be lost with it.
        let work = Arc::new(Mutex::new(Some(work)));
        let take = |work: &Mutex<Option<F>>| work.lock().ok().and_then(|mut work| work.take());
        let shared = Arc::clone(&work);
        let thread = thread::Builder::new().spawn(move || take(&shared).map(|work| work()));
        let state = match thread {
            Ok(thread) => State::Running(thread),
            Err(_) => State::Done(take(&work).map(|work| work())),
        };
        Self { state, owner: std::process::id() }
    }

    /// What the work gives; nothing where it panicked, or in a process that was forked meanwhile and has not this thread.
    pub fn wait(mut self) -> Option<T> {
        self.take()
    }
}

impl<T> Task<T> {
    fn take(&mut self) -> Option<T> {
        match std::mem::replace(&mut self.state, State::Done(None)) {
            State::Done(done) => done,
            State::Running(thread) if self.owner == std::process::id() => thread.join().ok().flatten(),
            State::Running(thread) => {
                // Neither waited for nor let go: nothing is known of it here.
                std::mem::forget(thread);
                None
            }
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.take();
    }
}

#[cfg(test)]
mod tests {
    use super::{Task, for_each_chunk};

    #[test]
    fn a_task_gives_what_its_work_gives() {
        assert_eq!(Task::spawn(|| 5).wait(), Some(5));
        assert_eq!(Task::spawn(|| -> i32 { panic!("as asked for") }).wait(), None);
    }

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
