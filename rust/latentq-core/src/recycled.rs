//! Memory for large arrays that is kept for a while after it is freed: the system zeroes every new page, which takes longer
//! than filling it once, and the C library gives every block of 32 MiB and more back to it at once.
//!
//! At most [`MOST`] bytes are kept, and none for long after others were used ([`IDLE`]). Blocks are allocated and freed
//! without them where their lock is taken: always in a forked child whose parent held it.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::memory::{HUGE, advise_huge};

/// The largest number of bytes that are kept.
pub const MOST: usize = 128 << 20;

/// Blocks that were not used for as long are freed when the next one is allocated or freed.
const IDLE: Duration = Duration::from_secs(2);

/// Alignment of blocks, and the bytes before each, which hold its size and how far it begins after its memory.
///
/// The allocator is not asked for the alignment: before glibc 2.38, an aligned block finds no room where one of nearly the same
/// size was freed, once anything small was allocated in between.
const HEADER: usize = 64;

/// A block that is not in use: where it starts, its size without the header, and since when.
struct Block {
    start: usize,
    room: usize,
    since: Instant,
}

/// The blocks that are kept, the oldest first.
static KEPT: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// Rounds a size up by less than an eighth, so that arrays of nearly the same size share memory.
fn size_class(len: usize) -> Option<usize> {
    let step = 1usize << (usize::BITS - len.leading_zeros()).saturating_sub(4);
    len.max(HEADER).checked_next_multiple_of(step.max(HEADER))
}

fn layout(room: usize) -> Option<Layout> {
    Layout::from_size_align(room.checked_add(2 * HEADER)?, align_of::<[usize; 2]>()).ok()
}

/// Allocates at least `len` bytes, aligned to a cache line. Their contents are arbitrary. Returns null if there is no memory.
#[allow(unsafe_code)]
pub fn allocate(len: usize) -> *mut u8 {
    let Some((room, layout)) = size_class(len).and_then(|room| Some((room, layout(room)?))) else {
        return ptr::null_mut();
    };
    if let Some(start) = reused(room) {
        return ptr::with_exposed_provenance_mut(start);
    }
    // SAFETY: the layout is not empty, and has the room after the offset, which is less than two headers; the header is in the
    // block and aligned.
    unsafe {
        let block = alloc(layout);
        if block.is_null() {
            return block;
        }
        let offset = HEADER + block.addr().wrapping_neg() % HEADER;
        let start = block.add(offset);
        start.sub(HEADER).cast::<[usize; 2]>().write([room, offset]);
        if room >= HUGE {
            advise_huge(std::slice::from_raw_parts_mut(start.cast(), room));
        }
        start
    }
}

/// Finds a kept block of this size class.
fn reused(room: usize) -> Option<usize> {
    let (found, idle) = {
        let mut kept = KEPT.try_lock().ok()?;
        let found = kept.iter().rposition(|block| block.room == room).map(|at| kept.remove(at).start);
        (found, take_idle(&mut kept))
    };
    idle.into_iter().for_each(free);
    found
}

/// Removes the blocks that were kept for too long.
fn take_idle(kept: &mut Vec<Block>) -> Vec<Block> {
    let idle = kept.iter().take_while(|block| block.since.elapsed() > IDLE).count();
    kept.drain(..idle).collect()
}

/// Gives back what [`allocate`] or [`reallocate`] returned; null is nothing.
///
/// # Safety
/// `start` is null, or was returned by one of them and not given back since.
#[allow(unsafe_code)]
pub unsafe fn release(start: *mut u8) {
    if start.is_null() {
        return;
    }
    // SAFETY: by the contract, the header is before it.
    let [room, _] = unsafe { header_of(start) };
    let block = Block { start: start.expose_provenance(), room, since: Instant::now() };
    let mut freed = Vec::new();
    match KEPT.try_lock() {
        Ok(mut kept) if room <= MOST => {
            freed = take_idle(&mut kept);
            kept.push(block);
            while kept.iter().map(|block| block.room).sum::<usize>() > MOST {
                freed.push(kept.remove(0));
            }
        }
        _ => freed.push(block),
    }
    freed.into_iter().for_each(free);
}

/// # Safety
/// As for [`release`], and not null.
#[allow(unsafe_code)]
unsafe fn header_of(start: *mut u8) -> [usize; 2] {
    // SAFETY: `allocate` wrote it there.
    unsafe { start.sub(HEADER).cast::<[usize; 2]>().read() }
}

#[allow(unsafe_code)]
fn free(block: Block) {
    let start: *mut u8 = ptr::with_exposed_provenance_mut(block.start);
    if let Some(layout) = layout(block.room) {
        // SAFETY: `allocate` allocated it with this layout, so far before its start, and it was given back.
        unsafe {
            let [_, offset] = header_of(start);
            dealloc(start.sub(offset), layout);
        }
    }
}

/// Changes the size of a block; the contents stay, as far as both reach. Returns null, and leaves it, if there is no memory.
///
/// # Safety
/// As for [`release`].
#[allow(unsafe_code)]
pub unsafe fn reallocate(start: *mut u8, len: usize) -> *mut u8 {
    // SAFETY: by the contract.
    let room = if start.is_null() { 0 } else { unsafe { header_of(start)[0] } };
    if room >= len && room / 2 <= len {
        return start;
    }
    let moved = allocate(len);
    if !moved.is_null() {
        // SAFETY: both blocks are at least as long, and differ; the old one is given back once.
        unsafe {
            ptr::copy_nonoverlapping(start.cast_const(), moved, room.min(len));
            release(start);
        }
    }
    moved
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use super::*;

    // One test, since all share what is kept.
    #[test]
    fn blocks_are_reused_whole_and_bounded() {
        let write = |start: *mut u8, len: usize, value: u8| unsafe { start.write_bytes(value, len) };
        // The same memory again for nearly the same size.
        let first = allocate(5 << 20);
        assert!(first.addr().is_multiple_of(HEADER));
        write(first, 5 << 20, 1);
        unsafe { release(first) };
        let second = allocate((5 << 20) - 1000);
        assert_eq!(second, first);
        // Growing keeps the contents.
        write(second, 1000, 7);
        let grown = unsafe { reallocate(second, 20 << 20) };
        assert!((0..1000).all(|at| unsafe { grown.add(at).read() } == 7));
        write(grown, 20 << 20, 2);
        unsafe { release(grown) };
        // No more than the bound is kept, and nothing of a block above it.
        let blocks: Vec<_> = (0..12).map(|_| allocate(16 << 20)).collect();
        let large = allocate(MOST + 1);
        blocks.into_iter().chain([large]).for_each(|block| unsafe { release(block) });
        assert!(KEPT.lock().unwrap().iter().map(|block| block.room).sum::<usize>() <= MOST);
        // While the lock is taken, as for ever in a forked child.
        let kept = KEPT.lock().unwrap();
        let (len, other) = (kept.len(), allocate(16 << 20));
        write(other, 16 << 20, 3);
        unsafe { release(other) };
        assert_eq!(kept.len(), len);
        drop(kept);
        // From many threads.
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                scope.spawn(move || {
                    for len in (0..200).map(|i| 1000 * (i % 7 + 1)) {
                        let start = allocate(len);
                        write(start, len, thread);
                        assert!((0..len).all(|at| unsafe { start.add(at).read() } == thread));
                        unsafe { release(start) };
                    }
                });
            }
        });
        assert!(allocate(usize::MAX).is_null() && allocate(isize::MAX as usize).is_null());
        unsafe { release(ptr::null_mut()) };
        // Memory that was not used for long is freed.
        KEPT.lock().unwrap().iter_mut().for_each(|block| block.since -= 2 * IDLE);
        unsafe { release(allocate(1000)) };
        assert_eq!(KEPT.lock().unwrap().len(), 1);
    }
}
