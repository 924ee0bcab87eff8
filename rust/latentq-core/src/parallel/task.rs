//! One piece of work on a thread of its own.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

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
    use super::Task;

    #[test]
    fn a_task_gives_what_its_work_gives() {
        assert_eq!(Task::spawn(|| 5).wait(), Some(5));
        assert_eq!(Task::spawn(|| -> i32 { panic!("as asked for") }).wait(), None);
    }
}
