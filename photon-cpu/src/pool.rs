//! Worker threads that share the iterations of a loop.
//!
//! # Rules
//! - The caller works too, and waits only for iterations that another thread has claimed: a worker
//!   that is asleep or descheduled never holds anyone up.
//! - Threads spin a few microseconds between loops, then let others run for as long as a model's loops
//!   are apart, then sleep: the machine may be shared, and under a quota a spinning thread takes its time
//!   from the ones that work. Where others do run, threads sleep after the spinning: who sleeps is given
//!   the processor when woken, who only let others run is not before they have had their share.
//! - One loop at a time. A second one (from another thread, or from inside an iteration) runs on its
//!   caller alone.
//!
//! Deliberately absent: queues, futures, priorities, pinning.
#![allow(unsafe_code, reason = "lends a borrowed closure to threads that outlive it")]

use std::{
    any::Any,
    cell::UnsafeCell,
    fmt,
    marker::PhantomData,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread looks for work without letting others run.
const SPIN: Duration = Duration::from_micros(8);
/// How long it lets others run in between before it sleeps. To wake a sleeper takes longer than most of
/// a model's loops are apart.
const YIELD: Duration = Duration::from_micros(100);
/// Who yields, is gone for so long and still has nothing to do has company.
const CROWDED: Duration = Duration::from_micros(500);
/// So many waits after that do without yielding: some tokens' worth.
const SHY_WAITS: usize = 1000;

/// A handle to a set of threads. Cloning shares them; the last drop ends them.
#[derive(Clone)]
pub(crate) struct Pool {
    threads: Arc<Threads>,
}

struct Threads {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a loop runs.
    turn: Mutex<()>,
}

/// A loop body and its trip count.
#[derive(Clone, Copy)]
struct Job {
    body: *const (dyn Fn(usize) + Sync),
    tasks: usize,
}

struct Shared {
    /// Written only while `unclaimed` and `unfinished` are zero, by the holder of `Threads::turn`;
    /// read only between a claim and the end of the claimed iteration.
    job: UnsafeCell<Option<Job>>,
    /// Iterations that nobody has taken yet.
    unclaimed: AtomicUsize,
    /// Iterations that have not ended yet.
    unfinished: AtomicUsize,
    /// What the first iteration to panic threw.
    thrown: Mutex<Option<Box<dyn Any + Send>>>,
    sleep: Mutex<()>,
    wake: Condvar,
    sleepers: AtomicUsize,
    done: Condvar,
    /// Whether the caller sleeps on `done`.
    caller_sleeps: AtomicBool,
    closing: AtomicBool,
    /// How many waits go without yielding, since others want the processors.
    shy: AtomicUsize,
}

// SAFETY: all fields but `job` are Sync. `job` is written while no iteration is claimed and read only
// by who holds a claim, and claiming synchronizes with the write through `unclaimed`. The pointer in
// it is to a Sync closure, so any thread may call it.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it is tied to a thread; `job`'s pointer is to a Sync closure.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks, so poison says nothing about the data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Looks at `ready` until it is time to sleep; whether it came true.
    fn watch(&self, ready: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..16 {
                if ready() {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        if self.shy.fetch_update(Relaxed, Relaxed, |waits| waits.checked_sub(1)).is_ok() {
            return ready();
        }
        let mut now = start.elapsed();
        while now < SPIN + YIELD {
            thread::yield_now();
            if ready() {
                return true;
            }
            let left = std::mem::replace(&mut now, start.elapsed());
            if now - left > CROWDED {
                self.shy.store(SHY_WAITS, Relaxed);
            }
        }
        false
    }

    /// Takes one iteration of the loop that is running now.
    fn claim(&self) -> Option<usize> {
        // Acquire pairs with the Release of publishing (other claims continue its release sequence):
        // who claims sees the job.
        self.unclaimed.fetch_update(AcqRel, Relaxed, |left| left.checked_sub(1)).ok()
    }

    /// Runs claimed iterations until none are left.
    fn help(&self) {
        while let Some(left) = self.claim() {
            // SAFETY: this thread holds a claim, so `job` is not written until it counts the
            // iteration as finished below.
            let job = unsafe { *self.job.get() };
            let Job { body, tasks } = job.expect("published before it can be claimed");
            // SAFETY: the closure lives on the frame of `run`, which does not return before
            // `unfinished` is zero, and this claimed iteration has not been counted as finished.
            let body = unsafe { &*body };
            let result = panic::catch_unwind(AssertUnwindSafe(|| body(tasks - left)));
            if let Err(payload) = result {
                lock(&self.thrown).get_or_insert(payload);
            }
            // The SeqCst pair here and in `finish`: either the caller sees zero before it sleeps, or
            // this thread sees that it sleeps.
            if self.unfinished.fetch_sub(1, SeqCst) == 1 && self.caller_sleeps.load(SeqCst) {
                let _guard = lock(&self.sleep);
                self.done.notify_all();
            }
        }
    }

    /// Offers a loop to the workers.
    fn publish(&self, tasks: usize) {
        self.unfinished.store(tasks, Relaxed);
        // The SeqCst pair here and in `work`: either a worker sees the work before it sleeps, or this
        // thread sees that it sleeps.
        self.unclaimed.store(tasks, SeqCst);
        let sleepers = self.sleepers.load(SeqCst);
        if sleepers > 0 {
            let _guard = lock(&self.sleep);
            for _ in 0..sleepers.min(tasks - 1) {
                self.wake.notify_one();
            }
        }
    }

    /// Waits for the iterations that others have claimed.
    fn finish(&self) {
        if self.watch(|| self.unfinished.load(Acquire) == 0) {
            return;
        }
        let mut guard = lock(&self.sleep);
        // A swap and not a store: qemu 7.2 lets the load behind pass a store on AArch64, which no processor does, and
        // the suite that runs under it then hangs here.
        self.caller_sleeps.swap(true, SeqCst);
        while self.unfinished.load(SeqCst) > 0 {
            guard = self.done.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, SeqCst);
    }

    /// A worker's life.
    fn work(&self) {
        while !self.closing.load(Acquire) {
            self.help();
            if self.watch(|| self.unclaimed.load(Relaxed) > 0) {
                continue;
            }
            let mut guard = lock(&self.sleep);
            self.sleepers.fetch_add(1, SeqCst);
            while self.unclaimed.load(SeqCst) == 0 && !self.closing.load(SeqCst) {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, SeqCst);
        }
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] counted. Fewer if the system refuses
    /// to start that many.
    pub(crate) fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            job: UnsafeCell::new(None),
            unclaimed: AtomicUsize::new(0),
            unfinished: AtomicUsize::new(0),
            thrown: Mutex::new(None),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            done: Condvar::new(),
            caller_sleeps: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            shy: AtomicUsize::new(0),
        });
        let spawn = |i| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("photon-cpu-{i}"));
            thread.spawn(move || shared.work())
        };
        let workers = (1..threads).map_while(|i| spawn(i).ok()).collect();
        Pool { threads: Arc::new(Threads { shared, workers, turn: Mutex::new(()) }) }
    }

    /// How many threads this process may keep busy: processors, less what affinity and cgroup quotas
    /// take away.
    pub(crate) fn default_threads() -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }

    /// Threads that take part in a loop, the caller counted.
    pub(crate) fn threads(&self) -> usize {
        self.threads.workers.len() + 1
    }

    /// Calls `body` once with each of `0..tasks`, on any threads and in any order, and returns when
    /// all calls have.
    ///
    /// # Panics
    /// If a call did, with what it threw first. The other calls may or may not have been made.
    pub(crate) fn run(&self, tasks: usize, body: &(dyn Fn(usize) + Sync)) {
        let Threads { shared, workers, turn } = &*self.threads;
        if tasks <= 1 || workers.is_empty() {
            return (0..tasks).for_each(body);
        }
        let turn = match turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..tasks).for_each(body),
        };
        let body: *const (dyn Fn(usize) + Sync + '_) = body;
        // SAFETY: only the lifetime changes; the pointer is used while an iteration is claimed and
        // unfinished, and this function waits for all of them, whatever they throw.
        let body: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(body) };
        // SAFETY: this thread holds `turn` and the previous holder left no iteration unclaimed or
        // unfinished, so nobody reads `job` now.
        unsafe { *shared.job.get() = Some(Job { body, tasks }) };
        shared.publish(tasks);
        shared.help();
        shared.finish();
        let thrown = lock(&shared.thrown).take();
        drop(turn);
        if let Some(payload) = thrown {
            panic::resume_unwind(payload);
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.closing.store(true, SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what iterations throw, so there is nothing to learn here. None of them
            // is this thread: `run` borrows the handle for as long as iterations run.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// A mutable slice whose parts are handed to different iterations of a loop.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared `Parts` gives out `&mut T` to parts that its users keep disjoint, as a split slice
// would; that needs `T: Send` and nothing else.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Elements `range`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[expect(clippy::mut_from_ref, reason = "the caller vouches that the parts are disjoint")]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        let start = self.start.wrapping_add(range.start);
        // SAFETY: the range lies in the slice that `self` borrows mutably (checked above), and the
        // caller keeps the parts disjoint.
        unsafe { std::slice::from_raw_parts_mut(start, range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_runs_exactly_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 7, 64, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Relaxed) == 1), "{threads} threads, {tasks}");
            }
        }
    }

    #[test]
    fn many_short_loops_with_pauses_lose_nothing() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        for round in 0..5000 {
            pool.run(round % 5, &|i| {
                total.fetch_add(i + 1, Relaxed);
            });
            if round % 500 == 0 {
                thread::sleep(Duration::from_micros(100));
            }
        }
        // Each five rounds add 0 + 1 + 3 + 6 + 10.
        assert_eq!(total.into_inner(), 1000 * 20);
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for _ in 0..20 {
            let thrown = panic::catch_unwind(AssertUnwindSafe(|| {
                pool.run(10, &|i| assert!(i != 7, "iteration {i}"));
            }));
            let message = *thrown.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, "iteration 7");
            let total = AtomicUsize::new(0);
            pool.run(10, &|i| {
                total.fetch_add(i, Relaxed);
            });
            assert_eq!(total.into_inner(), 45);
        }
    }

    #[test]
    fn loops_nest_and_come_from_several_threads() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(4, &|_| {
                            pool.run(3, &|i| {
                                total.fetch_add(i, Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 200 * 4 * 3);
    }
}
