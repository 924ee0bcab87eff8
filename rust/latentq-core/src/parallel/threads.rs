//! A thread pool that is owned by one object and ends with it.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Error, Result};

/// A pool of threads that run tasks in submission order. When it is dropped, running tasks finish and queued tasks are
/// discarded.
///
/// A forked child does not have the threads: submitting a job there is an error.
pub struct Threads {
    count: usize,
    queue: Arc<Queue>,
    handles: Mutex<Vec<JoinHandle<()>>>,
    owner: u32,
}

type Work = Box<dyn FnOnce() + Send>;

/// A part of a job, or a task that nobody waits for: the number of the job, and what to do.
type Queued = (u64, Work);

/// Queued tasks; `None` after shutdown.
struct Queue {
    tasks: Mutex<Option<VecDeque<Queued>>>,
    more: Condvar,
    /// The number of the next job.
    next: AtomicU64,
}

impl Threads {
    /// Creates a pool of up to `count` threads, which start with the first job.
    pub fn new(count: usize) -> Self {
        let queue = Queue { tasks: Mutex::new(Some(VecDeque::new())), more: Condvar::new(), next: AtomicU64::new(0) };
        Self { count: count.max(1), queue: Arc::new(queue), handles: Mutex::new(Vec::new()), owner: process::id() }
    }

    /// Maximum number of threads.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Submits a job: `work` is called once for each of `parts`. Returns a handle to the results, in the order of `parts`.
    ///
    /// # Errors
    /// An I/O error if the system refuses to start a single thread; an argument error in a forked child.
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
        let job = self.queue.next.fetch_add(1, Relaxed);
        let is_single = parts.len() == 1;
        if let Some(tasks) = lock(&self.queue.tasks).as_mut() {
            for (number, part) in parts.into_iter().enumerate() {
                let ticket = Ticket { state: Arc::clone(&state), number, result: None };
                let work = Arc::clone(&work);
                tasks.push_back((job, Box::new(move || ticket.finish(work(part)))));
            }
        }
        match is_single {
            true => self.queue.more.notify_one(),
            false => self.queue.more.notify_all(),
        }
        Ok(Job { state, queue: Some((Arc::clone(&self.queue), job)), owner: self.owner })
    }

    /// Submits a task that nobody waits for.
    ///
    /// # Errors
    /// As [`Threads::start`].
    pub fn post(&self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        if self.owner != process::id() {
            return Err(other_process());
        }
        self.begin()?;
        let job = self.queue.next.fetch_add(1, Relaxed);
        if let Some(tasks) = lock(&self.queue.tasks).as_mut() {
            tasks.push_back((job, Box::new(work)));
        }
        self.queue.more.notify_one();
        Ok(())
    }

    /// Starts the threads that are not running yet.
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
            return mem::forget(handles); // the threads are not in this process, and the queue's lock may be held forever
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
                    Some(Some((_, work))) => break work,
                    Some(None) => tasks = self.more.wait(tasks).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(tasks);
            run(work);
        }
    }

    /// Takes a task that no thread has begun: one of this job or, if there is none, the first.
    fn take(&self, job: u64) -> Option<Work> {
        let mut tasks = lock(&self.tasks);
        let tasks = tasks.as_mut()?;
        let at = tasks.iter().position(|(number, _)| *number == job).unwrap_or(0);
        tasks.remove(at).map(|(_, work)| work)
    }
}

fn run(work: Work) {
    let _ = catch_unwind(AssertUnwindSafe(work)); // the ticket reports a panic to the waiting thread
}

/// A handle to a job of [`Threads`]. Dropping it waits for the job.
pub struct Job<T> {
    state: Arc<Progress<T>>,
    /// The queue that its parts may be in, and its number there; `None` if it is done.
    queue: Option<(Arc<Queue>, u64)>,
    owner: u32,
}

struct Progress<T> {
    /// Number of unfinished parts, and the results of the others.
    results: Mutex<(usize, Vec<Option<Result<T>>>)>,
    done: Condvar,
}

impl<T> Job<T> {
    /// Creates a finished job with a single result.
    pub fn done(result: T) -> Self {
        let results = Mutex::new((0, vec![Some(Ok(result))]));
        Self { state: Arc::new(Progress { results, done: Condvar::new() }), queue: None, owner: process::id() }
    }

    /// True if [`Job::wait`] does not have to wait.
    pub fn is_done(&self) -> bool {
        self.owner != process::id() || lock(&self.state.results).0 == 0
    }

    /// Does a part that no thread has begun on the calling thread, which would wait for the job otherwise, and whose processor
    /// the threads may be waiting for: a part of this job or, if all of them are begun, of one that is queued. Returns false if
    /// the job is done, or nothing is queued.
    pub fn help(&self) -> bool {
        let Some((queue, job)) = self.queue.as_ref().filter(|_| !self.is_done()) else { return false };
        let work = queue.take(*job);
        work.map(run).is_some()
    }

    /// Waits up to `timeout` for all results. Returns `None` on a timeout.
    ///
    /// # Errors
    /// The error of the first part that failed; an argument error if the threads ended before, a part panicked, or the
    /// threads belong to another process.
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
        let not_done = || Err(Error::argument("the threads ended before the job was done"));
        Some(results.map(|result| result.unwrap_or_else(not_done)).collect())
    }
}

impl<T> Drop for Job<T> {
    fn drop(&mut self) {
        while self.wait(Duration::MAX).is_none() {}
    }
}

/// Reports one part as done when dropped: after its work, after a panic, or when the queue is discarded.
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

/// Locks a mutex. No code of this module panics under a lock, so poisoning can be ignored.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn other_process() -> Error {
    Error::argument(
        "this iterator belongs to another process, whose threads do not exist after a fork: make a new iterator or loader in \
         this process",
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::{Arc, Duration, Error, Job, Threads};

    fn all<T>(job: &Job<T>) -> crate::Result<Vec<T>> {
        job.wait(Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn results_are_in_the_order_of_the_parts() {
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
    fn a_job_fails_with_its_first_error_or_panic() {
        let threads = Threads::new(2);
        let job =
            threads.start(vec![1, 2, 3], |n| if n < 2 { Ok(n) } else { Err(Error::argument(n.to_string())) }).unwrap();
        assert_eq!(all(&job).unwrap_err().to_string(), "2");
        let job = threads.start(vec![0usize], |n| Ok(1 / n)).unwrap();
        assert!(all(&job).is_err());
    }

    #[test]
    fn a_slow_job_does_not_hold_up_the_jobs_after_it() {
        let threads = Threads::new(2);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let slow = threads.start(vec![wait], |wait| wait.recv().map_err(|_| Error::argument("no sender"))).unwrap();
        let others: Vec<_> = (0..20).map(|n| threads.start(vec![n], Ok).unwrap()).collect();
        for (n, job) in others.iter().enumerate() {
            assert_eq!(all(job).unwrap(), [n]);
            assert!(job.is_done());
        }
        assert!(!slow.is_done());
        release.send(()).unwrap();
        all(&slow).unwrap();
    }

    #[test]
    fn who_helps_does_the_parts_that_no_thread_has_begun() {
        let threads = Threads::new(1);
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let slow = threads.start(vec![wait], |wait| wait.recv().map_err(|_| Error::argument("no sender"))).unwrap();
        let own = std::thread::current().id();
        let other = threads.start(vec![0], move |n| Ok((n, std::thread::current().id() == own))).unwrap();
        let job = threads.start((0..5).collect(), move |n| Ok((n, std::thread::current().id() == own))).unwrap();
        let panics = threads.start(vec![0usize], |n| Ok(1 / n)).unwrap();
        let begun = slow_has_begun(&threads);
        assert!(job.wait(Duration::from_millis(1)).is_none());
        while job.help() {}
        assert!(job.is_done() && !other.is_done() && !panics.is_done());
        assert!(slow.help() && other.is_done() && !panics.is_done());
        assert!(slow.help() && panics.is_done());
        assert!(!slow.help());
        assert_eq!(all(&job).unwrap(), (0..5).map(|n| (n, true)).collect::<Vec<_>>());
        assert_eq!(all(&other).unwrap(), [(0, true)]);
        assert!(all(&panics).is_err());
        assert!(begun && !slow.is_done());
        release.send(()).unwrap();
        all(&slow).unwrap();
    }

    /// Waits until the only thread has taken the first of eight parts.
    fn slow_has_begun(threads: &Threads) -> bool {
        let queued = || super::lock(&threads.queue.tasks).as_ref().map_or(0, |tasks| tasks.len());
        (0..20_000).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            queued() <= 7
        })
    }

    #[test]
    fn dropping_the_threads_discards_queued_tasks_and_wakes_waiters() {
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
