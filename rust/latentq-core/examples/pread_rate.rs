//! The rate of plain reads, the bound of a loader whose samples are not in memory: each of some threads reads samples in
//! random order, one at a time.
//!
//!     cargo run --release --example pread_rate -- FOLDER BYTES THREADS SECONDS
//!
//! Prints the samples of BYTES bytes read in a second from the `.mds` files of FOLDER.

use std::error::Error;
use std::fs::{File, read_dir};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, bytes, threads, seconds] = &arguments[..] else {
        return Err("arguments: FOLDER BYTES THREADS SECONDS".into());
    };
    let (bytes, threads): (usize, usize) = (bytes.parse()?, threads.parse()?);
    let limit = Duration::from_secs_f64(seconds.parse()?);
    let mut files = Vec::new();
    let mut samples = Vec::new();
    for entry in read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "mds") {
            let file = File::open(path)?;
            let count = file.metadata()?.len() / bytes as u64;
            samples.extend((0..count).map(|at| (files.len(), at * bytes as u64)));
            files.push(file);
        }
    }
    // A shuffle by Fisher and Yates, with splitmix64.
    let mut state = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    for last in (1..samples.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        samples.swap(last, ((mixed ^ mixed >> 31) % (last as u64 + 1)) as usize);
    }
    let next = AtomicUsize::new(0);
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut sample = vec![0; bytes];
                while started.elapsed() < limit
                    && let Some((file, at)) = samples.get(next.fetch_add(1, Relaxed))
                {
                    files[*file].read_exact_at(&mut sample, *at).expect("the file is there");
                }
            });
        }
    });
    let read = next.load(Relaxed).min(samples.len());
    println!("{:.0}", read as f64 / started.elapsed().as_secs_f64());
    Ok(())
}
