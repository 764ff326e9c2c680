//! What [`Tape`] does that a device which runs at once cannot show.
use photon_core::{Arena, Copy, Cx, DType, Device, Error, Tensor};
use photon_cpu::{Cpu, CpuOptions, Tape, TapeStream};

/// A tape with two tensors of four elements: what a copy reads and what it writes.
struct Rig {
    tape: Tape,
    stream: TapeStream,
    arena: Arena<Tape>,
    from: Tensor<Tape>,
    to: Tensor<Tape>,
}

impl Rig {
    fn new() -> Rig {
        let cpu = Cpu::open(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let tape = Tape::new(cpu);
        let stream = tape.stream().unwrap();
        let arena = Arena::new(&tape, 0).unwrap();
        let from = Tensor::zeros(&tape, [1, 4], DType::F32).unwrap();
        let to = Tensor::zeros(&tape, [1, 4], DType::F32).unwrap();
        Rig { tape, stream, arena, from, to }
    }

    fn set(&mut self, values: [f32; 4]) {
        let bytes = values.map(f32::to_le_bytes).concat();
        self.tape.upload(&mut self.stream, self.from.buffer(), 0, &bytes);
    }

    fn copy(&mut self) {
        let Rig { tape, stream, arena, from, to } = self;
        Cx::new(tape, stream, arena).copy(Copy { out: to, x: from });
    }

    fn get(&mut self) -> photon_core::Result<[f32; 4]> {
        let host = self.tape.host_buffer(16)?;
        let pending = self.tape.read_back(&mut self.stream, self.to.buffer(), 0..16, host)?;
        let bytes = pending.wait()?;
        Ok(std::array::from_fn(|i| f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().unwrap())))
    }

    /// What the memory holds, whatever is recorded.
    fn peek(&self) -> [f32; 4] {
        let mut other =
            Rig { stream: self.tape.stream().unwrap(), to: self.to.view(), ..Rig::new() };
        other.get().unwrap()
    }
}

#[test]
fn nothing_runs_before_it_is_submitted() {
    let mut rig = Rig::new();
    rig.set([1.0; 4]);
    rig.copy();
    assert_eq!(rig.peek(), [0.0; 4]);
    assert_eq!(rig.stream.num_steps(), 2);
    rig.tape.submit(&mut rig.stream).unwrap();
    assert_eq!(rig.peek(), [1.0; 4]);
    assert_eq!(rig.stream.num_steps(), 0);
}

#[test]
fn a_capture_runs_nothing_and_its_graph_outlives_the_tensors() {
    let mut rig = Rig::new();
    rig.set([1.0; 4]);
    let Rig { tape, stream, arena, from, to } = &mut rig;
    let tape = tape.clone();
    let graph = tape
        .capture(stream, &mut |stream| {
            let scratch = Tensor::zeros(&tape, [1, 4], DType::F32).unwrap();
            let copies = [(&scratch, &*from), (&*to, &scratch)];
            for (out, x) in copies {
                Cx::new(&tape, stream, arena).copy(Copy { out: &mut out.view(), x });
            }
        })
        .unwrap()
        .expect("a tape captures");
    assert_eq!((graph.num_steps(), rig.stream.num_steps()), (2, 1));
    assert_eq!(rig.get().unwrap(), [0.0; 4]);
    for value in [2.0, 3.0] {
        rig.set([value; 4]);
        rig.tape.replay(&mut rig.stream, &graph);
        assert_eq!(rig.get().unwrap(), [value; 4]);
    }
}

#[test]
fn a_submit_inside_a_capture_is_an_error_that_stays() {
    let mut rig = Rig::new();
    let tape = rig.tape.clone();
    let captured = tape.capture(&mut rig.stream, &mut |stream| {
        assert!(tape.submit(stream).is_err());
    });
    let Err(Error::DeviceLost { why, .. }) = captured else { panic!("{captured:?}") };
    assert!(why.contains("inside a capture"), "{why}");
    assert!(rig.get().is_err());
}

#[test]
fn a_panic_in_a_kernel_is_latched_with_its_message_and_stops_what_follows() {
    let mut rig = Rig::new();
    // Past the end of the buffer: found when the copy runs.
    let bytes = [0; 16];
    rig.tape.upload(&mut rig.stream, rig.from.buffer(), 8, &bytes);
    rig.set([1.0; 4]);
    rig.copy();
    let error = rig.tape.submit(&mut rig.stream).unwrap_err();
    let Error::DeviceLost { doing, why, .. } = &error else { panic!("{error}") };
    assert_eq!(doing, "upload");
    assert!(why.contains("16 bytes at 8 of a buffer of 16"), "{why}");
    assert_eq!(rig.peek(), [0.0; 4]);
    rig.copy();
    assert_eq!(rig.tape.submit(&mut rig.stream).unwrap_err(), error);
}

#[test]
fn a_lost_device_fails_every_stream() {
    let mut rig = Rig::new();
    rig.set([1.0; 4]);
    rig.tape.submit(&mut rig.stream).unwrap();
    rig.tape.clone().lose("unplugged");
    rig.copy();
    assert!(rig.get().unwrap_err().to_string().contains("unplugged"));
    let mut other = rig.tape.stream().unwrap();
    assert!(rig.tape.submit(&mut other).is_err());
}
