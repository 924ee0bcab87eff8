//! Reading whole files ahead, which takes a fraction of the time of reading their samples one by one in shuffled order.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::Cache;
use super::file::{open_regular, read_exact_at, read_whole};
use crate::parallel::Task;

/// Bytes that are read at a time: they stay in the processor's cache. The system reads further ahead on its own, and into
/// larger pages than if it was only told which bytes will be needed (3.0 against 1.2 GB/s on a virtual disk).
const PIECE: usize = 1 << 19;

/// How long samples wait for the files at first. Reads of single samples in between would cut the large ones to pieces.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long samples wait before they are read all the same, if the files take longer: so that most of the disk's time goes to
/// the files, and some thousand samples come in a second.
const PAUSE: Duration = Duration::from_millis(20);

/// Interval at which a waiting thread looks. Waiting takes no lock, which a forked child might never get.
const LOOK: Duration = Duration::from_micros(250);

/// Without [`Ahead::expect`], files are read ahead once a `SHARE`-th of their bytes was waited for.
const SHARE: u64 = 32;

/// A file to read ahead.
pub struct File {
    /// The number of its shard, if its bytes go to the cache of shards.
    pub kept: Option<usize>,
    pub path: PathBuf,
    /// Its length in the index. A file of another length is not read: it might not fit in memory.
    pub len: u64,
}

/// Reads the files of a dataset ahead, on a thread of its own, when samples are not in memory. Dropping it stops and joins
/// the thread.
///
/// A file that cannot be read is skipped: reading its samples reports the error.
pub struct Ahead {
    /// The most bytes that may be read ahead.
    room: AtomicU64,
    /// True if all samples will be needed, and files were not read ahead since that was announced.
    is_expected: AtomicBool,
    /// Number of those who announced it and have not ended.
    readers: AtomicU32,
    /// Bytes that were waited for since the files were last read ahead.
    missed: AtomicU64,
    state: Arc<State>,
    task: Mutex<Option<Task<()>>>,
    opened: Instant,
}

#[derive(Default)]
struct State {
    /// The process whose thread reads ahead, or 0. A forked child does not have its parent's thread, but may start one.
    process: AtomicU32,
    /// Microseconds from [`Ahead::opened`] to the start of the thread.
    started: AtomicU64,
    is_stopped: AtomicBool,
    /// True if all files were read ahead once.
    is_complete: AtomicBool,
}

impl Ahead {
    pub fn new(room: u64) -> Self {
        Self {
            room: AtomicU64::new(room),
            is_expected: AtomicBool::new(false),
            readers: AtomicU32::new(0),
            missed: AtomicU64::new(0),
            state: Arc::default(),
            task: Mutex::new(None),
            opened: Instant::now(),
        }
    }

    /// The most bytes that may be read ahead.
    pub fn room(&self) -> u64 {
        self.room.load(Relaxed)
    }

    /// Announces that all samples will be read, until [`Ahead::stop`]: if one is not in memory, all files are read ahead,
    /// unless they have more than `room` bytes.
    pub fn expect(&self, room: u64) {
        self.readers.fetch_add(1, Relaxed);
        self.room.store(room, Relaxed);
        self.is_expected.store(true, Relaxed);
    }

    /// Ends what [`Ahead::expect`] announced. When all have ended, reading ahead stops, until samples are waited for again.
    pub fn stop(&self) {
        let readers = self.readers.fetch_update(Relaxed, Relaxed, |readers| Some(readers.saturating_sub(1)));
        if readers.unwrap_or(0) <= 1 {
            self.is_expected.store(false, Relaxed);
            self.state.is_stopped.store(true, Relaxed);
        }
    }

    /// Counts bytes that were not in memory, and returns true if files of `total` bytes are to be read ahead. If the system does
    /// not tell what is in memory (`None`), they are read ahead once.
    pub fn is_due(&self, bytes: Option<u64>, total: u64) -> bool {
        if bytes.is_none() && self.state.is_complete.load(Relaxed) {
            return false;
        }
        let bytes = bytes.unwrap_or(0);
        let missed = self.missed.fetch_add(bytes, Relaxed).saturating_add(bytes);
        let is_worth_it = self.is_expected.load(Relaxed) || missed > total / SHARE;
        is_worth_it && total <= self.room() && !self.is_running()
    }

    /// True if files are being read ahead, in this process.
    pub fn is_running(&self) -> bool {
        self.state.process.load(Relaxed) == std::process::id()
    }

    /// Begins to read `files` ahead, those of shards that are kept into `cache`. Returns true if files are being read ahead;
    /// they are not if the system refuses a thread.
    pub fn start(&self, cache: Arc<Cache<Vec<u8>>>, files: impl FnOnce() -> Vec<File>) -> bool {
        // If another thread has the lock, it starts. In a forked child the lock may never be free: nothing is read ahead then.
        let Ok(mut task) = self.task.try_lock() else { return self.is_running() };
        let process = std::process::id();
        if self.state.process.load(Relaxed) == process {
            return true;
        }
        self.is_expected.store(false, Relaxed);
        self.missed.store(0, Relaxed);
        self.state.is_stopped.store(false, Relaxed);
        self.state.started.store(self.opened.elapsed().as_micros() as u64, Relaxed);
        self.state.process.store(process, Relaxed);
        let (state, files) = (Arc::clone(&self.state), files());
        // This joins the former thread, if any, which ends after it has set `process` to 0.
        *task = Task::try_spawn(move || {
            state.read(files, &cache);
            state.process.store(0, Relaxed);
        });
        if task.is_none() {
            self.state.process.store(0, Relaxed);
        }
        task.is_some()
    }

    /// Waits until files are no longer read ahead, but not for long. Returns false if they still are.
    pub fn wait(&self) -> bool {
        let started = Duration::from_micros(self.state.started.load(Relaxed));
        let until = (started + PATIENCE).max(self.opened.elapsed() + PAUSE);
        while self.is_running() {
            if self.opened.elapsed() >= until {
                return false;
            }
            thread::sleep(LOOK);
        }
        true
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.state.is_stopped.store(true, Relaxed);
        // Dropping the task joins its thread, or in a forked child forgets it.
        *self.task.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl State {
    fn read(&self, files: Vec<File>, cache: &Cache<Vec<u8>>) {
        let is_stopped = || self.is_stopped.load(Relaxed);
        let mut piece = vec![0; PIECE];
        for File { kept, path, len } in files {
            if is_stopped() {
                return;
            }
            let Some((file, _)) = open_regular(&path).ok().filter(|(_, found)| *found == len) else { continue };
            if let (Some(number), Ok(len)) = (kept, usize::try_from(len))
                && let Ok(Some(bytes)) = read_whole(&file, len, is_stopped)
            {
                cache.put(number, Arc::new(bytes), len);
                continue;
            }
            let mut start = 0;
            while start < len && !is_stopped() {
                let count = (len - start).min(PIECE as u64);
                if read_exact_at(&file, &mut piece[..count as usize], start).is_err() {
                    break;
                }
                start += count;
            }
        }
        self.is_complete.fetch_or(!is_stopped(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    const LEN: usize = PIECE + 77;

    fn with_files(name: &str, test: impl FnOnce(&Path, Vec<File>)) {
        let folder = std::env::temp_dir().join(format!("latentq-ahead-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |number: usize| {
            let path = folder.join(number.to_string());
            fs::write(&path, vec![number as u8; LEN]).unwrap();
            File { kept: (number % 2 == 1).then_some(number), path, len: LEN as u64 }
        };
        let mut files: Vec<_> = (0..4).map(file).collect();
        files.insert(1, File { kept: Some(4), path: folder.join("missing"), len: LEN as u64 });
        test(&folder, files);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn files_are_due_if_they_fit_and_enough_is_missed() {
        let ahead = Ahead::new(3200);
        assert!(!ahead.is_due(Some(100), 3200));
        assert!(ahead.is_due(Some(1), 3200));
        assert!(!ahead.is_due(Some(10_000), 3201));
        let expected = Ahead::new(0);
        assert!(!expected.is_due(Some(0), 100));
        expected.expect(100);
        assert!(expected.is_due(Some(0), 100));
        assert!(!expected.is_due(Some(0), 101));
        assert!(expected.is_due(None, 100));
        expected.state.is_complete.store(true, Relaxed);
        assert!(!expected.is_due(None, 100));
        assert!(expected.is_due(Some(0), 100));
        expected.stop();
        assert!(!expected.is_due(Some(0), 100));
    }

    #[test]
    fn it_stops_when_all_who_expect_samples_have_ended() {
        let ahead = Ahead::new(0);
        let is_on = || (ahead.is_expected.load(Relaxed), !ahead.state.is_stopped.load(Relaxed));
        ahead.expect(100);
        ahead.expect(100);
        ahead.stop();
        assert_eq!(is_on(), (true, true));
        ahead.stop();
        assert_eq!(is_on(), (false, false));
        ahead.stop();
        ahead.expect(100);
        assert!(ahead.is_due(Some(0), 100));
        ahead.stop();
        assert!(!ahead.is_due(Some(0), 100));
    }

    #[test]
    fn files_are_read_and_kept_and_missing_ones_skipped() {
        with_files("read", |_, files| {
            let (ahead, cache) = (Ahead::new(0), Arc::new(Cache::new(5, usize::MAX)));
            assert!(ahead.start(Arc::clone(&cache), || files));
            while !ahead.wait() {}
            assert!(!ahead.is_running());
            assert!(ahead.state.is_complete.load(Relaxed));
            for number in 0..5 {
                let bytes = cache.get(number).map(|bytes| (bytes.len(), bytes[LEN - 1]));
                assert_eq!(bytes, [1, 3].contains(&number).then_some((LEN, number as u8)));
            }
        });
    }

    #[test]
    fn files_of_another_length_than_their_index_says_are_skipped() {
        with_files("length", |_, mut files| {
            let (ahead, cache) = (Ahead::new(0), Arc::new(Cache::new(5, usize::MAX)));
            fs::write(&files[2].path, vec![0; LEN + 1]).unwrap();
            files[4].len -= 1;
            assert!(ahead.start(Arc::clone(&cache), || files));
            while !ahead.wait() {}
            assert!((0..5).all(|number| cache.get(number).is_none()));
        });
    }

    #[test]
    fn it_is_started_once_at_a_time_and_again_later() {
        with_files("again", |_, files| {
            let (ahead, cache) = (Ahead::new(0), Arc::new(Cache::new(5, usize::MAX)));
            // The state of a forked child: its parent's thread is not there.
            ahead.state.process.store(std::process::id() ^ 1, Relaxed);
            assert!(!ahead.is_running() && ahead.wait());
            assert!(ahead.start(Arc::clone(&cache), Vec::new));
            while !ahead.wait() {}
            ahead.state.process.store(std::process::id(), Relaxed);
            assert!(ahead.start(Arc::clone(&cache), || unreachable!("it is running")));
            assert!(!ahead.wait(), "waiting ends");
            ahead.state.process.store(0, Relaxed);
            assert!(ahead.start(Arc::clone(&cache), || files));
            while !ahead.wait() {}
            assert!(cache.get(3).is_some());
        });
    }

    #[test]
    fn dropping_it_stops_and_joins_the_thread() {
        with_files("drop", |folder, _| {
            let (ahead, cache) = (Ahead::new(0), Arc::new(Cache::new(5, usize::MAX)));
            let file = |_| File { kept: Some(0), path: folder.join("1"), len: LEN as u64 };
            assert!(ahead.start(Arc::clone(&cache), || (0..1_000_000).map(file).collect()));
            drop(ahead);
            assert_eq!(Arc::strong_count(&cache), 1);
        });
    }
}
