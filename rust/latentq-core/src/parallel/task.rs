//! A single background job.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A job on its own thread. Dropping the task waits for the job.
pub struct Task<T> {
    state: State<T>,
    owner: u32,
}

enum State<T> {
    Running(JoinHandle<Option<T>>),
    Done(Option<T>),
}

impl<T: Send + 'static> Task<T> {
    /// Starts `work` on a new thread, or runs it on this thread if the system refuses one.
    pub fn spawn<F: FnOnce() -> T + Send + 'static>(work: F) -> Self {
        // A failed spawn drops its closure, so `work` must be kept outside of it.
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

    /// Starts `work` on a new thread. Returns `None`, without calling `work`, if the system refuses one.
    pub fn try_spawn(work: impl FnOnce() -> T + Send + 'static) -> Option<Self> {
        let thread = thread::Builder::new().spawn(move || Some(work())).ok()?;
        Some(Self { state: State::Running(thread), owner: std::process::id() })
    }

    /// Waits for the result. Returns `None` if the job panicked, or in a forked child, which does not have the thread.
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
                // The thread does not exist in this process: it can be neither joined nor detached.
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
    use super::Task;

    #[test]
    fn wait_returns_the_result_of_the_work() {
        assert_eq!(Task::spawn(|| 5).wait(), Some(5));
        assert_eq!(Task::spawn(|| -> i32 { panic!("expected") }).wait(), None);
        assert_eq!(Task::try_spawn(|| 5).and_then(Task::wait), Some(5));
    }
}
