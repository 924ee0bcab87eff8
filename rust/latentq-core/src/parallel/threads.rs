//! Threads that outlive the call that starts them and end with their owner.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Error, Result};

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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::{Arc, Duration, Error, Job, Threads};

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
}
