//! Where barriers stand, what a graph repeats, how uploads keep their turn, in any order of what lies between
//! two barriers.
#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use photon_core::{Arena, Copy, Cx, DType, Device, Tensor};

use crate::{Counts, Gpu, Sim, SimMetal, Stream};

type T = Tensor<SimMetal>;

/// Rows that one launch moves.
const SHAPE: [usize; 2] = [4, 8];

/// A simulator, a stream on it, and tensors to move rows between.
struct Bench {
    gpu: SimMetal,
    stream: Stream<Sim>,
    arena: Arena<SimMetal>,
    tensors: Vec<T>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let gpu = Gpu::new(Sim::with_seed(seed)).unwrap();
        let stream = gpu.stream().unwrap();
        let arena = Arena::new(&gpu, 0).unwrap();
        let tensor = |_| Tensor::zeros(&gpu, SHAPE, DType::I32).unwrap();
        Bench { tensors: (0..4).map(tensor).collect(), gpu, stream, arena }
    }

    /// Copies one tensor to another.
    fn copy(&mut self, from: usize, to: usize) {
        let mut out = self.tensors[to].view();
        let mut cx = Cx::new(&self.gpu, &mut self.stream, &mut self.arena);
        cx.copy(Copy { out: &mut out, x: &self.tensors[from] });
    }

    /// Uploads a number to all of a tensor.
    fn fill(&mut self, to: usize, number: i32) {
        let bytes: Vec<u8> = [number.to_le_bytes(); 32].concat();
        self.gpu.upload(&mut self.stream, self.tensors[to].buffer(), 0, &bytes);
    }

    fn submit(&mut self) -> Counts {
        let before = self.stream.submitted();
        let done = self.gpu.submit(&mut self.stream).unwrap();
        self.gpu.wait(&done).unwrap();
        let Counts { dispatches, barriers } = self.stream.submitted();
        Counts { dispatches: dispatches - before.dispatches, barriers: barriers - before.barriers }
    }

    /// The number that a tensor is full of.
    #[track_caller]
    fn number(&mut self, of: usize) -> i32 {
        let host = self.gpu.host_buffer(128).unwrap();
        let (gpu, stream) = (&self.gpu, &mut self.stream);
        let pending = gpu.read_back(stream, self.tensors[of].buffer(), 0..128, host).unwrap();
        let host = pending.wait().unwrap();
        let words =
            host.as_ref().chunks_exact(4).map(|w| i32::from_le_bytes(w.try_into().unwrap()));
        let words: Vec<i32> = words.collect();
        assert!(words.iter().all(|word| *word == words[0]), "{words:?}");
        words[0]
    }
}

fn seeds() -> impl Iterator<Item = u64> {
    0..6
}

#[test]
fn a_barrier_stands_where_a_launch_needs_another_and_nowhere_else() {
    let mut bench = Bench::new(1);
    bench.copy(0, 1);
    bench.copy(0, 2);
    bench.copy(0, 3);
    assert_eq!(bench.submit(), Counts { dispatches: 3, barriers: 0 });
    bench.copy(0, 1);
    bench.copy(1, 2);
    bench.copy(2, 3);
    assert_eq!(bench.submit(), Counts { dispatches: 3, barriers: 2 });
}

#[test]
fn a_chain_comes_through_in_every_order() {
    for seed in seeds() {
        let mut bench = Bench::new(seed);
        bench.fill(0, 7);
        bench.copy(0, 1);
        bench.copy(1, 2);
        bench.copy(2, 3);
        assert_eq!(bench.number(3), 7, "seed {seed}");
    }
}

#[test]
fn without_barriers_the_order_would_show() {
    // What the stream guards against, on a list that it did not make.
    use crate::{driver::Driver, work::Step};

    let mut bench = Bench::new(1);
    bench.fill(0, 7);
    bench.copy(0, 1);
    bench.copy(1, 2);
    let work = bench.stream.take_work();
    let mut bare = crate::Work::default();
    work.steps(&mut |step| {
        if let Step::Launch(launch) = step {
            bare.launch(&launch);
        }
        Ok::<(), ()>(())
    })
    .unwrap();
    let sim = bench.gpu.driver().clone();
    let mut queue = sim.queue().unwrap();
    #[allow(unsafe_code, reason = "the launches of two copies, whose tensors the bench holds")]
    // SAFETY: the arguments came from the stream, and the memory is the bench's.
    unsafe { sim.submit(&mut queue, &bare) }.unwrap();
    assert_eq!((bench.number(1), bench.number(2)), (7, 0));
}

#[test]
fn uploads_keep_their_turn_between_launches() {
    for seed in seeds() {
        let mut bench = Bench::new(seed);
        bench.fill(0, 1);
        bench.copy(0, 1);
        bench.fill(0, 2);
        bench.copy(0, 2);
        bench.fill(0, 3);
        assert_eq!([1, 2, 0].map(|of| bench.number(of)), [1, 2, 3], "seed {seed}");
    }
}

#[test]
fn uploads_larger_than_what_is_kept_for_them_keep_their_turn_too() {
    let mut bench = Bench::new(1);
    let large = Tensor::<SimMetal>::zeros(&bench.gpu, [1, 9 << 20], DType::U8).unwrap();
    for round in 0..9_u8 {
        // The first finds nothing under way; the others come after a launch.
        let bytes = vec![round; 9 << 20];
        bench.gpu.upload(&mut bench.stream, large.buffer(), 0, &bytes);
        bench.fill(0, round.into());
        bench.copy(0, 1);
        let part = vec![round; 700 << 10];
        bench.gpu.upload(&mut bench.stream, large.buffer(), 1 << 20, &part);
    }
    assert_eq!(bench.number(1), 8);
    let host = bench.gpu.host_buffer(9 << 20).unwrap();
    let pending = bench.gpu.read_back(&mut bench.stream, large.buffer(), 0..9 << 20, host).unwrap();
    assert!(pending.wait().unwrap().as_ref().iter().all(|byte| *byte == 8));
}

#[test]
fn a_graph_repeats_launches_barriers_and_uploads() {
    for seed in seeds() {
        let mut bench = Bench::new(seed);
        let Bench { gpu, stream, arena, tensors } = &mut bench;
        let (t, bytes) = (&*tensors, [5_i32.to_le_bytes(); 32].concat());
        let graph = gpu.capture(stream, &mut |stream| {
            gpu.upload(stream, t[0].buffer(), 0, &bytes);
            let mut cx = Cx::new(gpu, stream, arena);
            cx.copy(Copy { out: &mut t[1].view(), x: &t[0] });
            cx.copy(Copy { out: &mut t[2].view(), x: &t[1] });
        });
        let graph = graph.unwrap().unwrap();
        // Nothing has run.
        assert_eq!(bench.number(2), 0);
        for round in 0..3 {
            bench.fill(0, round);
            bench.copy(0, 3);
            bench.gpu.replay(&mut bench.stream, &graph);
            bench.copy(2, 1);
            // An upload that waits only if something is recorded, the graph, and a barrier around it.
            let counts = bench.submit();
            assert_eq!((counts.dispatches, counts.barriers), (5, 4), "seed {seed}");
            let numbers = [0, 1, 2, 3].map(|of| bench.number(of));
            assert_eq!(numbers, [5, 5, 5, round], "seed {seed}");
        }
    }
}

#[test]
fn a_graph_keeps_the_memory_that_it_touches() {
    let mut bench = Bench::new(1);
    bench.fill(0, 4);
    let Bench { gpu, stream, arena, tensors } = &mut bench;
    let between = Tensor::<SimMetal>::zeros(gpu, SHAPE, DType::I32).unwrap();
    let t = &*tensors;
    let graph = gpu.capture(stream, &mut |stream| {
        let mut cx = Cx::new(gpu, stream, arena);
        cx.copy(Copy { out: &mut between.view(), x: &t[0] });
        cx.copy(Copy { out: &mut t[1].view(), x: &between });
    });
    let graph = graph.unwrap().unwrap();
    drop(between);
    bench.gpu.replay(&mut bench.stream, &graph);
    drop(graph);
    assert_eq!(bench.number(1), 4);
}

#[test]
fn an_empty_submit_is_done_at_once_and_a_submit_inside_a_capture_fails() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.submit(), Counts::default());
    let gpu = bench.gpu.clone();
    let captured = gpu.capture(&mut bench.stream, &mut |stream| {
        assert!(gpu.submit(stream).is_err());
    });
    let error = captured.unwrap_err().to_string();
    assert!(error.contains("submitted inside a capture"), "{error}");
    assert_eq!(gpu.submit(&mut bench.stream).unwrap_err().to_string(), error);
}
