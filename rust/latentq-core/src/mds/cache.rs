//! A bounded lock-free cache, so that a process forked while other threads use it cannot deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwapOption;

/// A cache for keys `0..len` whose total weight stays within a limit, except that one entry is always kept.
///
/// Eviction uses the clock algorithm: entries that were not used since the hand last passed are evicted first. Two threads
/// that miss at the same time may both compute the value; one of them is kept.
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

    /// Inserts `value`, and evicts others until the total weight is within the limit.
    pub fn put(&self, key: usize, value: Arc<T>, weight: usize) {
        self.put_within(key, value, weight, self.limit);
    }

    /// [`Cache::put`] with another limit.
    pub fn put_within(&self, key: usize, value: Arc<T>, weight: usize, limit: usize) {
        let Some(slot) = self.slots.get(key) else { return };
        self.weight.fetch_add(weight, Relaxed);
        self.account_evicted(slot.swap(Some(Arc::new(Entry { value, weight, used: AtomicBool::new(true) }))));
        // Two rounds of the hand suffice: the first clears all marks, the second all slots.
        for _ in 0..self.slots.len().saturating_mul(2) {
            if self.weight.load(Relaxed) <= limit {
                return;
            }
            let at = self.hand.fetch_add(1, Relaxed) % self.slots.len();
            let keep = at == key || self.slots[at].load().as_ref().is_none_or(|entry| entry.used.swap(false, Relaxed));
            if !keep {
                self.account_evicted(self.slots[at].swap(None));
            }
        }
    }

    pub fn remove(&self, key: usize) {
        if let Some(slot) = self.slots.get(key) {
            self.account_evicted(slot.swap(None));
        }
    }

    fn account_evicted(&self, entry: Option<Arc<Entry<T>>>) {
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
    fn the_limit_holds_and_the_latest_entry_stays() {
        let cache = Cache::new(10, 3);
        for key in 0..10 {
            cache.put(key, Arc::new(key), 1);
            assert_eq!(cache.get(key).as_deref(), Some(&key));
            assert!((0..10).filter(|key| cache.get(*key).is_some()).count() <= 3);
        }
    }

    #[test]
    fn a_single_entry_may_exceed_the_limit() {
        let cache = Cache::new(2, 3);
        cache.put(0, Arc::new('a'), 100);
        assert!(cache.get(0).is_some());
        cache.put(1, Arc::new('b'), 100);
        assert!(cache.get(0).is_none() && cache.get(1).is_some());
        cache.put(1, Arc::new('c'), 1);
        cache.put(0, Arc::new('d'), 2);
        assert!(cache.get(0).is_some() && cache.get(1).is_some());
        cache.remove(1);
        assert!(cache.get(0).is_some() && cache.get(1).is_none());
    }
}
