//! The only threading of the crate: scoped threads over disjoint chunks of one buffer, a task that its owner waits for, and
//! [`Threads`] that work ahead of theirs. None outlives its call or its owner, and no thread is needed by a process that was
//! forked, so fork and spawn both work. The last two outlive the call that starts them, since their work has to go on while
//! their owner does something else: a loader prepares batches while the model learns, a writer fills the next shard. Their
//! owner ends them, and in a forked child, which has none of them, what is asked of them is an error or nothing.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Error, Result};

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

/// Threads that work through tasks in the order in which these come. Dropped, they finish what they have begun and end.
///
/// A forked child has none of them: what it asks of them is an error.
pub struct Threads {
    count: usize,
    queue: Arc<Queue>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    owner: u32,
}

type Work = Box<dyn FnOnce() + Send>;

/// Tasks that no thread has taken yet; `None` once there will be no more.
struct Queue {
    tasks: Mutex<Option<VecDeque<Work>>>,
    more: Condvar,
}

impl Threads {
    /// Up to `count` threads, which are started when there is work for them.
    pub fn new(count: usize) -> Self {
        let queue = Queue { tasks: Mutex::new(Some(VecDeque::new())), more: Condvar::new() };
        Self { count: count.max(1), queue: Arc::new(queue), handles: Mutex::new(Vec::new()), owner: process::id() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Has `work` called once with each of `parts`, and gives what will hold the results in their order.
    ///
    /// # Errors
    /// Of the system, where it grants no thread at all; an argument error in a forked child.
    pub fn start<P, T, F>(&self, parts: Vec<P>, work: F) -> Result<Job<T>>
    where
        P: Send + 'static,
        T: Send + 'static,
        F: Fn(P) -> Result<T> + Send + Sync + 'static,
    {
        if self.owner != process::id() {
            return Err(other_process());
        }
        self.begin()?;
        let results = parts.iter().map(|_| None).collect();
        let state = Arc::new(Progress { results: Mutex::new((parts.len(), results)), done: Condvar::new() });
        let work = Arc::new(work);
        if let Some(tasks) = lock(&self.queue.tasks).as_mut() {
            for (number, part) in parts.into_iter().enumerate() {
                let ticket = Ticket { state: Arc::clone(&state), number, result: None };
                let work = Arc::clone(&work);
                tasks.push_back(Box::new(move || ticket.finish(work(part))));
            }
        }
        self.queue.more.notify_all();
        Ok(Job { state, owner: self.owner })
    }

    /// Starts the threads that there are not yet.
    fn begin(&self) -> Result<()> {
        let mut handles = lock(&self.handles);
        while handles.len() < self.count {
            let queue = Arc::clone(&self.queue);
            match thread::Builder::new().name("latentq".into()).spawn(move || queue.work()) {
                Ok(handle) => handles.push(handle),
                Err(error) if handles.is_empty() => return Err(Error::io("a thread", error)),
                Err(_) => break,
            }
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let handles = mem::take(self.handles.get_mut().unwrap_or_else(PoisonError::into_inner));
        if self.owner != process::id() {
            return mem::forget(handles); // none of them is here, and another may have held the lock when it was forked
        }
        let left = lock(&self.queue.tasks).take();
        drop(left);
        self.queue.more.notify_all();
        for handle in handles {
            let _ = handle.join();
        }
    }
}

impl Queue {
    fn work(&self) {
        loop {
            let mut tasks = lock(&self.tasks);
            let work = loop {
                match tasks.as_mut().map(VecDeque::pop_front) {
                    None => return,
                    Some(Some(work)) => break work,
                    Some(None) => tasks = self.more.wait(tasks).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(tasks);
            let _ = catch_unwind(AssertUnwindSafe(work)); // whoever waits for it is told
        }
    }
}

/// What [`Threads`] were given to do. Dropped, it waits for those of its parts that are being worked on.
pub struct Job<T> {
    state: Arc<Progress<T>>,
    owner: u32,
}

struct Progress<T> {
    /// Parts that are not done, and the results of the others.
    results: Mutex<(usize, Vec<Option<Result<T>>>)>,
    done: Condvar,
}

impl<T> Job<T> {
    /// One of one part, which is done.
    pub fn done(result: T) -> Self {
        let results = Mutex::new((0, vec![Some(Ok(result))]));
        Self { state: Arc::new(Progress { results, done: Condvar::new() }), owner: process::id() }
    }

    /// The results, once there are all of them; `None` where there are not after that time.
    ///
    /// # Errors
    /// The first part's that failed; an argument error where the threads were dropped before, or are another process's.
    pub fn wait(&self, timeout: Duration) -> Option<Result<Vec<T>>> {
        if self.owner != process::id() {
            return Some(Err(other_process()));
        }
        let results = lock(&self.state.results);
        let waited = self.state.done.wait_timeout_while(results, timeout, |(left, _)| *left > 0);
        let (mut results, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if results.0 > 0 {
            return None;
        }
        let results = mem::take(&mut results.1).into_iter();
        let given_up = || Err(Error::argument("the threads that were to do it have ended"));
        Some(results.map(|result| result.unwrap_or_else(given_up)).collect())
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        while self.wait(Duration::MAX).is_none() {}
    }
}

/// Of one part: it reports the part as done when it is dropped, be it before it was begun or by a panic.
struct Ticket<T> {
    state: Arc<Progress<T>>,
    number: usize,
    result: Option<Result<T>>,
}

impl<T> Ticket<T> {
    fn finish(mut self, result: Result<T>) {
        self.result = Some(result);
    }
}

impl<T> Drop for Ticket<T> {
    fn drop(&mut self) {
        let mut results = lock(&self.state.results);
        results.1[self.number] = self.result.take();
        results.0 -= 1;
        if results.0 == 0 {
            self.state.done.notify_all();
        }
    }
}

/// Nothing panics under a lock of this module.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn other_process() -> Error {
    Error::argument("it was begun by another process, whose threads are not here")
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
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::time::Duration;

    use super::{Arc, Error, Job, Task, Threads, for_each_chunk};

    fn all<T>(job: &Job<T>) -> crate::Result<Vec<T>> {
        job.wait(Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn results_come_in_the_order_of_the_parts_whatever_the_number_of_threads() {
        for count in [0, 1, 2, 8] {
            let threads = Threads::new(count);
            let jobs: Vec<_> =
                (0..20).map(|n| threads.start((0..n).collect(), |part| Ok(part * part)).unwrap()).collect();
            for (n, job) in jobs.iter().enumerate() {
                assert_eq!(all(job).unwrap(), (0..n).map(|part| part * part).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn the_first_error_is_the_jobs_and_a_panic_is_one() {
        let threads = Threads::new(2);
        let job =
            threads.start(vec![1, 2, 3], |n| if n < 2 { Ok(n) } else { Err(Error::argument(n.to_string())) }).unwrap();
        assert_eq!(all(&job).unwrap_err().to_string(), "2");
        let job = threads.start(vec![0usize], |n| Ok(1 / n)).unwrap();
        assert!(all(&job).is_err());
    }

    #[test]
    fn what_is_dropped_begins_nothing_more_and_leaves_nobody_waiting() {
        let threads = Threads::new(1);
        let begun = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&begun);
        let job = threads
            .start(vec![(); 1000], move |()| {
                count.fetch_add(1, SeqCst);
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            })
            .unwrap();
        drop(threads);
        assert!(all(&job).is_err());
        assert!(begun.load(SeqCst) < 1000);
    }

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
