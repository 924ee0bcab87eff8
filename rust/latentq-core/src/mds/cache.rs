//! A bounded cache that no thread ever waits for, so that a process forked while others use it cannot hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;

/// One slot for each key `0..len`; the slots' weights stay within the limit, or one entry is held.
///
/// What was not asked for since the clock's hand last passed goes first. Two threads that miss at once may both make the
/// value: one of them is kept.
pub struct Cache<T> {
    slots: Box<[ArcSwapOption<Entry<T>>]>,
    weight: AtomicUsize,
    limit: usize,
    hand: AtomicUsize,
}

struct Entry<T> {
    value: Arc<T>,
    weight: usize,
    used: AtomicBool,
}

impl<T> Cache<T> {
    pub fn new(len: usize, limit: usize) -> Self {
        let slots = (0..len).map(|_| ArcSwapOption::empty()).collect();
        Self { slots, weight: AtomicUsize::new(0), limit, hand: AtomicUsize::new(0) }
    }

    pub fn get(&self, key: usize) -> Option<Arc<T>> {
        let slot = self.slots.get(key)?.load();
        let entry = slot.as_ref()?;
        if !entry.used.load(Relaxed) {
            entry.used.store(true, Relaxed);
        }
        Some(Arc::clone(&entry.value))
    }

    /// Keeps `value` under `key`, and lets go of others until the weights are within the limit.
    pub fn put(&self, key: usize, value: Arc<T>, weight: usize) {
        self.put_within(key, value, weight, self.limit);
    }

    /// The same, within another limit.
    pub fn put_within(&self, key: usize, value: Arc<T>, weight: usize, limit: usize) {
        let Some(slot) = self.slots.get(key) else { return };
        self.weight.fetch_add(weight, Relaxed);
        self.forget(slot.swap(Some(Arc::new(Entry { value, weight, used: AtomicBool::new(true) }))));
        // Two rounds of the hand clear every mark and then every slot: no more are needed.
        for _ in 0..self.slots.len().saturating_mul(2) {
            if self.weight.load(Relaxed) <= limit {
                return;
            }
            let at = self.hand.fetch_add(1, Relaxed) % self.slots.len();
            let keep = at == key || self.slots[at].load().as_ref().is_none_or(|entry| entry.used.swap(false, Relaxed));
            if !keep {
                self.forget(self.slots[at].swap(None));
            }
        }
    }

    fn forget(&self, entry: Option<Arc<Entry<T>>>) {
        if let Some(entry) = entry {
            self.weight.fetch_sub(entry.weight, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cache;
    use std::sync::Arc;

    #[test]
    fn the_limit_is_kept_and_what_is_used_stays() {
        let cache = Cache::new(10, 3);
        for key in 0..10 {
            cache.put(key, Arc::new(key), 1);
            assert_eq!(cache.get(key).as_deref(), Some(&key));
            assert!((0..10).filter(|key| cache.get(*key).is_some()).count() <= 3);
        }
    }

    #[test]
    fn one_entry_over_the_limit_is_still_held() {
        let cache = Cache::new(2, 3);
        cache.put(0, Arc::new('a'), 100);
        assert!(cache.get(0).is_some());
        cache.put(1, Arc::new('b'), 100);
        assert!(cache.get(0).is_none() && cache.get(1).is_some());
        cache.put(1, Arc::new('c'), 1);
        cache.put(0, Arc::new('d'), 2);
        assert!(cache.get(0).is_some() && cache.get(1).is_some());
    }
}
