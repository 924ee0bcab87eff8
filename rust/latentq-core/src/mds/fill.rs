//! Loading shards into memory in the background.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::Cache;
use super::file::{open_regular, read_whole};
use crate::parallel::Task;

/// Loads shards into a cache, one after the other, on a thread of its own that lives while there is something to load.
/// Dropping it stops the load and joins the thread.
///
/// A shard that is read meanwhile is read from its file. A shard that cannot be loaded stays out of the cache: the next read of
/// its file reports the error.
pub struct Filler {
    shared: Arc<Shared>,
    task: Mutex<Option<Task<()>>>,
    owner: u32,
}

struct Shared {
    cache: Arc<Cache<Vec<u8>>>,
    queue: Mutex<Queue>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct Queue {
    due: VecDeque<Due>,
    is_running: bool,
}

/// A shard to load.
struct Due {
    number: usize,
    path: PathBuf,
    len: usize,
}

impl Filler {
    pub fn new(cache: Arc<Cache<Vec<u8>>>) -> Self {
        let shared = Shared { cache, queue: Mutex::default(), stopped: AtomicBool::new(false) };
        Self { shared: Arc::new(shared), task: Mutex::new(None), owner: std::process::id() }
    }

    /// True in the process that created it. A forked child shares what its parent loaded but loads no more, because every
    /// child would have its own copy, where the page cache needs one.
    pub fn is_own(&self) -> bool {
        self.owner == std::process::id()
    }

    /// Queues the file of shard `number`, of `len` bytes. Returns at once. Does nothing in a forked child, which may never
    /// take the lock: another thread of its parent may have had it at the fork.
    pub fn load(&self, number: usize, path: PathBuf, len: usize) {
        if !self.is_own() {
            return;
        }
        let mut task = lock(&self.task);
        let is_running = {
            let mut queue = lock(&self.shared.queue);
            queue.due.push_back(Due { number, path, len });
            std::mem::replace(&mut queue.is_running, true)
        };
        if !is_running {
            let shared = Arc::clone(&self.shared);
            // This joins the former thread, if any, which has emptied the queue and ends.
            *task = Task::try_spawn(move || shared.work());
            if task.is_none() {
                // The system has no thread left. The shards are read from their files, as before.
                *lock(&self.shared.queue) = Queue::default();
            }
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Relaxed);
        // Dropping the task joins its thread, or in a forked child forgets it.
        *self.task.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let next = {
                let mut queue = lock(&self.queue);
                let next = queue.due.pop_front().filter(|_| !self.stopped.load(Relaxed));
                queue.is_running = next.is_some();
                next
            };
            let Some(due) = next else { return };
            if let Some(bytes) = self.read(&due) {
                self.cache.put(due.number, Arc::new(bytes), due.len);
            }
        }
    }

    /// The bytes of a shard, or `None` if it cannot be read, memory is short or the load is stopped.
    fn read(&self, due: &Due) -> Option<Vec<u8>> {
        let (file, len) = open_regular(&due.path).ok()?;
        if len != due.len as u64 {
            return None;
        }
        read_whole(&file, due.len, || self.stopped.load(Relaxed)).ok().flatten()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use super::{Cache, Filler};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("latentq-fill-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn wait(what: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !what() && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        what()
    }

    #[test]
    fn shards_arrive_in_the_cache_and_broken_ones_do_not() {
        let folder = Folder::new("arrive");
        let path = |name: &str| folder.0.join(name);
        for number in 0..3u8 {
            fs::write(path(&number.to_string()), vec![number; 3 << 20]).unwrap();
        }
        let cache = Arc::new(Cache::new(5, usize::MAX));
        let filler = Filler::new(Arc::clone(&cache));
        filler.load(3, path("missing"), 1);
        filler.load(4, path("1"), 5); // of another size than the index says
        for number in 0..3 {
            filler.load(number, path(&number.to_string()), 3 << 20);
        }
        assert!(wait(|| (0..3).all(|number| cache.get(number).is_some())));
        assert!((0..3).all(|number| cache.get(number).unwrap().iter().all(|byte| usize::from(*byte) == number)));
        assert!(cache.get(3).is_none() && cache.get(4).is_none());
        // A second round starts another thread.
        assert!(wait(|| !super::lock(&filler.shared.queue).is_running));
        filler.load(4, path("0"), 3 << 20);
        assert!(wait(|| cache.get(4).is_some()));
    }

    #[test]
    fn dropping_it_stops_what_is_queued() {
        let folder = Folder::new("drop");
        let path = folder.0.join("shard");
        fs::write(&path, vec![1; 8 << 20]).unwrap();
        let cache = Arc::new(Cache::new(1000, usize::MAX));
        let filler = Filler::new(Arc::clone(&cache));
        for number in 0..1000 {
            filler.load(number, path.clone(), 8 << 20);
        }
        drop(filler);
        assert!(Arc::strong_count(&cache) == 1, "the thread has ended");
        assert!((0..1000).any(|number| cache.get(number).is_none()));
    }
}
