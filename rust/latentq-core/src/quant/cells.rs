//! Finding the code of a value in a codebook by way of equal cells: the cell of a value says how many bounds lie in cells
//! before it, and only those of its own cell are compared with it.

use super::kernel::ROUND;

/// Number of cells between the lowest and the highest level: so many that hardly any has two bounds.
const CELLS: usize = 4096;

/// Bounds in a cell with which a search by bisection is no slower.
const MANY: usize = 3;

/// The cells of one codebook.
#[derive(Clone, Debug, PartialEq)]
pub struct Cells {
    low: f32,
    high: f32,
    scale: f32,
    /// The bounds between codes, ascending, and infinity after the last.
    bounds: [f32; 256],
    /// Bounds in the cells before each.
    before: [u8; CELLS],
    /// The largest number of bounds in a cell.
    most: usize,
}

impl Cells {
    /// The cells of ascending `bounds`, at most 255, between levels `low` and `high`. `None` if some cell would have too
    /// many bounds.
    pub fn new(low: f32, high: f32, ascending: &[f32]) -> Option<Box<Self>> {
        let mut bounds = [f32::INFINITY; 256];
        bounds.get_mut(..ascending.len())?.copy_from_slice(ascending);
        let scale = (CELLS - 1) as f32 / (high - low);
        // Not so large that differences which the processor may flush to zero would matter.
        if !(scale > 0.0 && scale < 1e30) {
            return None;
        }
        let mut cells = Self { low, high, scale, bounds, before: [0; CELLS], most: 0 };
        let mut counts = [0; CELLS];
        ascending.iter().for_each(|bound| counts[usize::from(cells.of(*bound).1)] += 1);
        let mut before = 0;
        for (own, count) in cells.before.iter_mut().zip(counts) {
            *own = before as u8; // at most 255
            before += count;
            cells.most = cells.most.max(count);
        }
        (cells.most < MANY).then(|| Box::new(cells))
    }

    /// A value in range (NaN becomes low), and its cell. Each operation rounds without changing the order of two values, so
    /// bounds in earlier cells are below a value, and those in later cells are not.
    #[inline(always)]
    pub fn of(&self, x: f32) -> (f32, u16) {
        let inside = if x > self.low { x } else { self.low };
        let inside = if inside < self.high { inside } else { self.high };
        (inside, ((inside - self.low) * self.scale + ROUND).to_bits() as u16 % CELLS as u16)
    }

    /// The codes of values, whose cells are given.
    #[inline(always)]
    pub fn codes(&self, x: &[f32], cells: &[u16], out: &mut [u8]) {
        match self.most {
            0 | 1 => self.count::<1>(x, cells, out),
            _ => self.count::<2>(x, cells, out),
        }
    }

    #[inline(always)]
    fn count<const MOST: usize>(&self, x: &[f32], cells: &[u16], out: &mut [u8]) {
        for ((x, cell), out) in x.iter().zip(cells).zip(out) {
            let mut code = u32::from(self.before[usize::from(*cell) % CELLS]);
            for _ in 0..MOST {
                code += is_above(*x, self.bounds[code as usize % 256]); // the last is infinity
            }
            *out = code as u8;
        }
    }
}

/// 1 if `x > bound`, else 0; hidden from the compiler, which would gather the look-ups around it into vectors, at twice the time.
#[inline(always)]
fn is_above(x: f32, bound: f32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    // SAFETY: every x86-64 processor has SSE.
    unsafe {
        use std::arch::x86_64::{_mm_comigt_ss, _mm_set_ss};
        _mm_comigt_ss(_mm_set_ss(x), _mm_set_ss(bound)) as u32
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        u32::from(x > bound)
    }
}
