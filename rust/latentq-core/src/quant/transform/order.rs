//! The tiles of a shape, and the order in which coefficients are coded.

use std::ops::Range;

use super::tables::{SIDE, TILE};
use super::{LEVELS, level_of};
use crate::Result;
use crate::memory::{filled, with_room};

/// A tile: its first row and column, and its size.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    pub row: usize,
    pub column: usize,
    pub height: usize,
    pub width: usize,
}

/// The layout of samples of one shape.
#[derive(Debug)]
pub struct Plan {
    pub height: usize,
    pub width: usize,
    /// Elements of a sample.
    pub elements: usize,
    /// In raster order.
    pub tiles: Vec<Tile>,
    /// True if every tile has every band, so that the tiles of consecutive elements are 0, 1, 2, ... again and again.
    pub is_full: bool,
    /// By coded position: the index in a sample (C, height, width).
    pub order: Vec<u32>,
    /// By coded position: the index in tiles of [`Plan::tile_len`].
    pub tiled: Vec<u32>,
    /// By band: its number in coded order. Empty unless `is_full`; then the coefficient of a band in tile t has the coded
    /// position `rank * tiles + t`.
    pub ranks: Vec<u32>,
    /// By coded position: the tile.
    pub tile: Vec<u32>,
    /// By coded position: the base of the band.
    pub base: Vec<u8>,
    /// Runs of equal base in coded order.
    pub runs: Vec<(u8, Range<usize>)>,
    /// The coded positions of the elements of each tile, ascending, tile by tile.
    pub members: Vec<u32>,
}

/// The pieces in which an axis is cut: their starts and lengths.
fn pieces(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(SIDE).map(move |start| (start, SIDE.min(len - start)))
}

impl Plan {
    /// Makes the plan of samples of `height` x `width`. `base` has 64 bands per channel, each at most 50. The number of
    /// elements is checked by the caller.
    pub fn new(base: &[u8], height: usize, width: usize) -> Result<Self> {
        let (channels, plane) = (base.len() / TILE, height * width);
        let tile_len = Self::tile_len(channels);
        let elements = channels * plane;
        let mut tiles = with_room(height.div_ceil(SIDE) * width.div_ceil(SIDE))?;
        for (row, height) in pieces(height) {
            tiles.extend(pieces(width).map(|(column, width)| Tile { row, column, height, width }));
        }
        let is_full = height.is_multiple_of(SIDE) && width.is_multiple_of(SIDE);
        let mut bands: Vec<usize> = (0..base.len()).collect();
        bands.sort_by_key(|band| std::cmp::Reverse(base[*band])); // stable: equals stay in the order of their numbers
        let (mut order, mut tiled) = (with_room(elements)?, with_room(elements)?);
        let (mut tile_of, mut bases) = (with_room(elements)?, with_room(elements)?);
        let mut runs: Vec<(u8, Range<usize>)> = Vec::new();
        let mut ranks = filled(0, if is_full { base.len() } else { 0 })?;
        for (rank, band) in bands.into_iter().enumerate() {
            if is_full {
                ranks[band] = rank as u32;
            }
            let (channel, row, column) = (band / TILE, band % TILE / SIDE, band % SIDE);
            for (number, tile) in tiles.iter().enumerate() {
                // Row u of a tile of n rows belongs to the bands 8 u / n.
                let (u, v) = ((row * tile.height).div_ceil(SIDE), (column * tile.width).div_ceil(SIDE));
                if u >= tile.height
                    || v >= tile.width
                    || SIDE * u / tile.height != row
                    || SIDE * v / tile.width != column
                {
                    continue;
                }
                order.push((channel * plane + (tile.row + u) * width + tile.column + v) as u32);
                tiled.push((number * tile_len + channel * TILE + u * SIDE + v) as u32);
                tile_of.push(number as u32);
                bases.push(base[band]);
            }
            match runs.last_mut() {
                Some((last, run)) if *last == base[band] => run.end = order.len(),
                _ => runs.push((base[band], runs.last().map_or(0, |(_, run)| run.end)..order.len())),
            }
        }
        let mut next = filled(0u32, tiles.len())?;
        let mut start = 0;
        for (next, tile) in next.iter_mut().zip(&tiles) {
            *next = start;
            start += (channels * tile.height * tile.width) as u32;
        }
        let mut members = filled(0, elements)?;
        for (position, tile) in tile_of.iter().enumerate() {
            let next = &mut next[*tile as usize];
            members[*next as usize] = position as u32;
            *next += 1;
        }
        Ok(Self {
            height,
            width,
            elements,
            tiles,
            is_full,
            order,
            tiled,
            ranks,
            tile: tile_of,
            base: bases,
            runs,
            members,
        })
    }

    /// By coded position: the number of the band, of `count`.
    pub fn bands(&self, count: usize) -> Result<Vec<u32>> {
        let mut bands = with_room(self.elements)?;
        let tile_len = Self::tile_len(count / TILE);
        for (position, tile) in self.tiled.iter().zip(&self.tile) {
            let Tile { height, width, .. } = self.tiles[*tile as usize];
            let position = *position as usize % tile_len;
            let (channel, at) = (position / TILE, position % TILE);
            let (row, column) = (SIDE * (at / SIDE) / height, SIDE * (at % SIDE) / width);
            bands.push((channel * TILE + row * SIDE + column) as u32);
        }
        Ok(bands)
    }

    /// The coded position from which on no element has low bits, given the offset of each tile.
    pub fn low_bits_end(&self, offsets: &[i8]) -> usize {
        let most = offsets.iter().copied().max().unwrap_or(0);
        let has_low_bits = |base: u8| LEVELS[usize::from(level_of(base, most))].1 > 0;
        let last = self.runs.iter().rev().find(|(base, _)| has_low_bits(*base));
        last.map_or(0, |(_, run)| run.end)
    }

    /// Length of a tile (C, 8, 8) with a gap after it. Without the gap, the same coefficient of several tiles would be in the
    /// same set of a cache, which has no room for all.
    pub fn tile_len(channels: usize) -> usize {
        channels * TILE + 16
    }

    /// Length of all tiles.
    pub fn tiled_len(&self, channels: usize) -> usize {
        self.tiles.len() * Self::tile_len(channels)
    }
}

/// Fills `out` with the values of `from`, again and again.
pub fn repeat<T>(out: &mut [u8], from: &[T], value: impl Fn(&T) -> u8) {
    if let [one] = from {
        return out.fill(value(one));
    }
    let mut len = out.len().min(from.len());
    for (out, one) in out.iter_mut().zip(from) {
        *out = value(one);
    }
    while len < out.len() {
        let more = len.min(out.len() - len);
        out.copy_within(..more, len);
        len += more;
    }
}
