//! The most that this machine does, measured beside each benchmark, and a table of how near to it each comes.
//!
//! A peak is measured right before and right after what is compared with it, and the better one counts: the memory of a
//! shared machine changes its speed within minutes. Speeds are of the medians of criterion's own samples. Peaks are of
//! the machine, whatever level of instructions is forced.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::{
    fmt,
    hint::black_box,
    sync::atomic::{AtomicUsize, Ordering::*},
    time::{Duration, Instant},
};

use criterion::{BenchmarkGroup, Throughput, measurement::WallTime};
use photon_core::Device;
use photon_cpu::{Buffer, Cpu, CpuOptions};

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64::best;
#[cfg(target_arch = "x86_64")]
use x86_64::best;

/// Samples of a benchmark.
const SAMPLES: usize = 15;
/// More than last-level caches hold.
pub(crate) const COLD_BYTES: usize = 256 << 20;
/// Measurements of a peak.
const TRIES: usize = 9;
/// Steps of multiplications: some milliseconds.
const STEPS: usize = 2_000_000;
const HAND_OVERS: usize = 20_000;

/// What a benchmark is bound by at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peak {
    /// Bytes read from memory, by all threads.
    Read,
    /// Multiplications and additions of f32, each of which counts.
    Floats,
    /// The same in pairs of bf16.
    Pairs,
    /// The same of bytes in fours.
    Bytes,
    /// Times that two threads hand a line of cache to each other and back.
    HandOver,
}

impl Peak {
    /// The unit of speeds, and how many make one.
    fn unit(self) -> (&'static str, f64) {
        match self {
            Peak::Read => ("GiB/s", (1u64 << 30) as f64),
            Peak::Floats | Peak::Pairs => ("GFLOP/s", 1e9),
            Peak::Bytes => ("Gop/s", 1e9),
            Peak::HandOver => ("M/s", 1e6),
        }
    }
}

/// All benchmarks of a run.
pub(crate) struct Report {
    threads: usize,
    memory: Buffer,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    peak: Peak,
    /// Of the peak's kind in a second.
    speed: f64,
    /// The most there is of it, if it can be measured here.
    most: Option<f64>,
}

impl Report {
    pub(crate) fn new() -> Report {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let cpu = Cpu::open(CpuOptions::default()).expect("a processor");
        // As weights lie: in huge pages, touched once.
        let memory = cpu.alloc(COLD_BYTES).expect("memory");
        cpu.upload(&mut cpu.stream().expect("a stream"), &memory, 0, &vec![1; COLD_BYTES]);
        Report { threads, memory, rows: Vec::new() }
    }

    /// Measures `run`, which does `amount` of what the peak counts with what `prepare` makes. Nothing is prepared if
    /// the run's filter leaves the benchmark out.
    pub(crate) fn bench<S>(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: String,
        (amount, peak): (usize, Peak),
        prepare: impl Fn() -> S,
        mut run: impl FnMut(&mut S),
    ) {
        let amount_u64 = amount as u64;
        group.sample_size(SAMPLES).throughput(match peak {
            Peak::Read => Throughput::Bytes(amount_u64),
            _ => Throughput::Elements(amount_u64),
        });
        let (mut prepared, mut samples) = (None, Vec::new());
        group.bench_function(&name, |b| {
            let (state, _) = prepared.get_or_insert_with(|| (prepare(), self.most(peak)));
            b.iter_custom(|count| {
                let begun = Instant::now();
                (0..count).for_each(|_| run(state));
                let took = begun.elapsed();
                samples.push(took.div_f64(count as f64));
                took
            });
        });
        if let Some((_, before)) = prepared {
            // Those in front are of warming up.
            let median = median(&mut samples.split_off(samples.len().saturating_sub(SAMPLES)));
            let speed = amount as f64 / median.as_secs_f64();
            let most = before.zip(self.most(peak)).map(|(before, after)| before.max(after));
            self.rows.push(Row { name, peak, speed, most });
        }
    }

    /// The most of it in a second.
    fn most(&self, peak: Peak) -> Option<f64> {
        let (amount, work): (usize, Box<dyn Fn() + '_>) = match peak {
            Peak::Read => {
                let part = COLD_BYTES / self.threads;
                (part * self.threads, Box::new(move || self.read(part)))
            }
            Peak::HandOver if self.threads < 2 => return None,
            Peak::HandOver => (HAND_OVERS, Box::new(hand_over)),
            Peak::Floats | Peak::Pairs | Peak::Bytes => {
                let (chains, operations) = best(peak)?;
                let work = move || {
                    // SAFETY: the processor has the instructions, or `best` would not have named them.
                    on_all_threads(|_| unsafe { chains(STEPS) }, self.threads);
                };
                (STEPS * operations * self.threads, Box::new(work))
            }
        };
        let mut times = [Duration::ZERO; TRIES].map(|_| {
            let begun = Instant::now();
            work();
            begun.elapsed()
        });
        Some(amount as f64 / median(&mut times).as_secs_f64())
    }

    /// Each thread reads `part` bytes.
    fn read(&self, part: usize) {
        let read = |thread| {
            let start = self.memory.as_ptr().wrapping_add(thread * part);
            // SAFETY: the part lies in the memory that `self` keeps, which nobody writes.
            black_box(read(unsafe { std::slice::from_raw_parts(start, part) }));
        };
        on_all_threads(read, self.threads);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        writeln!(f, "\n{:width$}  {:>8}  {:>8}  {:7}  share", "", "speed", "most", "")?;
        for Row { name, peak, speed, most } in &self.rows {
            let (unit, one) = peak.unit();
            let most_in_unit = most.map_or("?".into(), |most| format!("{:.1}", most / one));
            let share = most.map_or("?".into(), |most| format!("{:.0} %", 100.0 * speed / most));
            writeln!(
                f,
                "{name:width$}  {:8.1}  {most_in_unit:>8}  {unit:7}  {share:>5}",
                speed / one
            )?;
        }
        Ok(())
    }
}

/// Of other processors nothing is known.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn best(_: Peak) -> Option<(unsafe fn(usize), usize)> {
    None
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn on_all_threads(work: impl Fn(usize) + Sync, threads: usize) {
    std::thread::scope(|scope| {
        for i in 1..threads {
            let work = &work;
            scope.spawn(move || work(i));
        }
        work(0);
    });
}

fn hand_over() {
    let turn = AtomicUsize::new(0);
    let take_turns = |thread: usize| {
        for i in 0..HAND_OVERS {
            while turn.load(Acquire) != 2 * i + thread {
                std::hint::spin_loop();
            }
            turn.store(2 * i + thread + 1, Release);
        }
    };
    on_all_threads(take_turns, 2);
}

/// Reads all of it, as fast as it comes: asked for well ahead, since the hardware's prefetcher stops at pages.
fn read(bytes: &[u8]) -> u64 {
    const AHEAD: usize = 4096;
    let mut sums = [0u64; 8];
    for line in bytes.chunks_exact(64) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch of any address is allowed.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_NTA>(line.as_ptr().wrapping_add(AHEAD).cast());
        }
        for (sum, word) in sums.iter_mut().zip(line.chunks_exact(8)) {
            *sum ^= u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        }
    }
    sums.iter().fold(0, |a, b| a ^ b)
}
