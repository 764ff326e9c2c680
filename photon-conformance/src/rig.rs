//! The bench every case works on: tensors with guard bands, and the comparison with the oracle.
//!
//! # Rules
//! - Each tensor lies in a buffer of its own between two guard bands, and a column view has guards in
//!   its gaps too. Nobody may change a guard. Guards of inputs hold NaN (indices: a valid index), so
//!   reading past the end shows as well; guards of outputs hold a pattern no kernel would write.
//! - Outputs start as NaN with a payload of our own, so an element not written is seen, and "stays as
//!   it is" means these very bits.
//! - Values are rounded to the element type before the oracle sees them, so it knows exactly what the
//!   device knows.
//!
//! # Tolerance
//! One rounding to the output's type, at most half a unit in the last place of the wanted value, plus
//! the noise of f32 arithmetic: `2^-24 (8 + 2 sqrt(terms)) magnitude`, where `magnitude` is the sum of
//! the absolute values of what was added up. Rounding errors of a sum are independent of each other,
//! hence the square root; the 8 covers a handful of operations and an exponential or tanh that is off
//! by a few units. A lost or doubled term is larger than that by orders of magnitude, and two roundings
//! to a 16-bit type are already too many.
use std::io::Write;

use half::{bf16, f16};
use photon_core::{
    Arena, Cx, DType, Kernels, Shape, Tensor, Weight, WeightData, WeightFormat, quant,
};

use crate::{
    Options,
    rng::{self, Rng},
};

const GUARD_BYTES: usize = 256;

/// Unit roundoff of f32.
pub(crate) const F32_ROUNDOFF: f64 = 1.0 / (1u64 << 24) as f64;

/// What a failing comparison is reported with.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) op: &'static str,
    pub(crate) about: String,
    pub(crate) seed: u64,
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}], seed {}", self.op, self.about, self.seed)?;
        match rng::salt() {
            0 => Ok(()),
            salt => write!(f, ", {}={salt}", rng::SALT_VARIABLE),
        }
    }
}

/// What an element shall be afterwards.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// The bits it had before.
    Stays,
    /// This value, rounded to nearest even; any NaN if it is NaN.
    Exact(f32),
    /// About this value.
    Near(Value),
    /// Any finite number: an element that is too dear to compute here.
    Finite,
    /// Any bits: the element is void.
    Any,
}

/// A number the oracle computed, and what its tolerance depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Value {
    pub(crate) value: f64,
    /// Sum of the absolute values of everything that was added up.
    pub(crate) magnitude: f64,
    /// How many things were added up.
    pub(crate) terms: usize,
    /// Tolerance on top, for roundings the operation's doc allows.
    pub(crate) extra: f64,
}

impl Value {
    pub(crate) fn tolerance(&self, dtype: DType, options: &Options) -> f64 {
        let noise = F32_ROUNDOFF * (8.0 + 2.0 * (self.terms as f64).sqrt()) + options.product_error;
        let inexact = noise * self.magnitude + self.extra;
        inexact + half_ulp(dtype, self.value.abs() + inexact)
    }
}

/// The largest error of rounding a number of this size to nearest.
pub(crate) fn half_ulp(dtype: DType, size: f64) -> f64 {
    match dtype {
        DType::F16 => size / 2048.0 + 0.5f64.powi(25), // 11 bits; the step below 2^-14 is 2^-24.
        DType::Bf16 => size / 256.0,
        _ => size * F32_ROUNDOFF,
    }
}

/// Columns that belong to someone else, before and after a column view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    pub(crate) before: usize,
    pub(crate) after: usize,
}

impl Gaps {
    pub(crate) const NONE: Gaps = Gaps { before: 0, after: 0 };
}

/// A tensor on the device, and the bytes its whole buffer was given.
#[derive(Debug)]
pub(crate) struct Probe<D: Kernels> {
    pub(crate) t: Tensor<D>,
    what: &'static str,
    image: Vec<u8>,
}

impl<D: Kernels> Probe<D> {
    /// The elements as they were uploaded.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.elements().map(|at| f64::from(decode(&self.image[at..], self.t.dtype()))).collect()
    }

    /// The elements' bytes as they were uploaded.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let size = self.t.dtype().size();
        self.elements().flat_map(|at| &self.image[at..at + size]).copied().collect()
    }

    /// Byte offset of every element, row by row.
    fn elements(&self) -> impl Iterator<Item = usize> + use<D> {
        let (size, stride) = (self.t.dtype().size(), self.t.row_stride());
        let (offset, rows, cols) = (self.t.offset(), self.t.rows(), self.t.cols());
        (0..rows).flat_map(move |i| (0..cols).map(move |j| offset + (i * stride + j) * size))
    }
}

/// The float at the start of `bytes`.
pub(crate) fn decode(bytes: &[u8], dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        DType::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        DType::I32 | DType::U8 | DType::Int8 | DType::Fp8 => panic!("{dtype} is not a float"),
    }
}

/// The bytes of one element; a type of 16 bits uses the first two.
type Bits = [u8; 4];

/// `value` rounded to nearest even.
pub(crate) fn encode(value: f32, dtype: DType) -> Bits {
    match dtype {
        DType::F16 => u32::from(f16::from_f32(value).to_bits()).to_le_bytes(),
        DType::Bf16 => u32::from(bf16::from_f32(value).to_bits()).to_le_bytes(),
        DType::F32 => value.to_le_bytes(),
        DType::I32 | DType::U8 | DType::Int8 | DType::Fp8 => panic!("{dtype} is not a float"),
    }
}

/// What a byte of an output starts as.
pub(crate) const UNWRITTEN_BYTE: u8 = 0x5A;

fn unwritten(dtype: DType) -> Bits {
    match dtype {
        DType::F16 => 0x7E5A_u32.to_le_bytes(),
        DType::Bf16 => 0x7FDA_u32.to_le_bytes(),
        DType::F32 => 0x7FC0_5A5A_u32.to_le_bytes(),
        DType::I32 => i32::MIN.to_le_bytes(),
        DType::U8 | DType::Int8 | DType::Fp8 => [UNWRITTEN_BYTE; 4],
    }
}

/// A device, a stream and the comparisons.
#[derive(Debug)]
pub(crate) struct Rig<'d, D: Kernels> {
    pub(crate) device: &'d D,
    pub(crate) options: &'d Options,
    pub(crate) stream: D::Stream,
    arena: Arena<D>,
}

impl<'d, D: Kernels> Rig<'d, D> {
    pub(crate) fn new(device: &'d D, options: &'d Options) -> Self {
        let stream = device.stream().expect("a stream");
        let arena = Arena::new(device, 0).expect("an empty arena");
        Rig { device, options, stream, arena }
    }

    /// Records one operation. It runs at the latest when something is read back.
    pub(crate) fn record(&mut self, op: impl FnOnce(&mut Cx<'_, D>)) {
        op(&mut Cx::new(self.device, &mut self.stream, &mut self.arena));
    }

    fn place(
        &mut self,
        what: &'static str,
        shape: Shape,
        dtype: DType,
        gaps: Gaps,
        guard: impl Fn(usize) -> u8,
        element: impl Fn(usize) -> Bits,
    ) -> Probe<D> {
        let (rows, cols) = (shape.rows(), shape.cols());
        let stride = gaps.before + cols + gaps.after;
        let bytes = 2 * GUARD_BYTES + rows * stride * dtype.size();
        let buffer = self.device.alloc(bytes).expect("memory for a test tensor");
        let t = if gaps == Gaps::NONE {
            Tensor::new(buffer, GUARD_BYTES, shape, dtype)
        } else {
            let whole = Tensor::new(buffer, GUARD_BYTES, [rows, stride], dtype);
            whole.col_range(gaps.before..gaps.before + cols)
        };
        let mut probe = Probe { t, what, image: (0..bytes).map(guard).collect() };
        for (i, at) in probe.elements().enumerate() {
            probe.image[at..at + dtype.size()].copy_from_slice(&element(i)[..dtype.size()]);
        }
        self.device.upload(&mut self.stream, probe.t.buffer(), 0, &probe.image);
        probe
    }

    /// An input of floats, in a column view if there are gaps.
    pub(crate) fn view(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        gaps: Gaps,
        values: &[f32],
    ) -> Probe<D> {
        let shape = shape.into();
        assert_eq!(values.len(), shape.elements(), "{what}: values for {shape:?}");
        self.place(what, shape, dtype, gaps, |_| 0xFF, |i| encode(values[i], dtype))
    }

    /// A contiguous input of floats.
    pub(crate) fn input(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        values: &[f32],
    ) -> Probe<D> {
        self.view(what, shape, dtype, Gaps::NONE, values)
    }

    /// An input of indices. Its guards hold a valid one.
    pub(crate) fn indices(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        ids: &[i32],
    ) -> Probe<D> {
        let shape = shape.into();
        assert_eq!(ids.len(), shape.elements(), "{what}: indices for {shape:?}");
        let guard = |i: usize| 1i32.to_le_bytes()[i % 4];
        self.place(what, shape, DType::I32, Gaps::NONE, guard, |i| ids[i].to_le_bytes())
    }

    /// An input of bytes.
    pub(crate) fn bytes(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        bytes: &[u8],
    ) -> Probe<D> {
        let shape = shape.into();
        assert_eq!(bytes.len(), shape.elements(), "{what}: bytes for {shape:?}");
        self.place(what, shape, DType::U8, Gaps::NONE, |_| 0xA5, |i| [bytes[i]; 4])
    }

    /// A tensor of any type, in a column view if there are gaps, from its elements' bytes.
    pub(crate) fn raw(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        gaps: Gaps,
        bytes: &[u8],
    ) -> Probe<D> {
        let (shape, size) = (shape.into(), dtype.size());
        assert_eq!(bytes.len(), shape.elements() * size, "{what}: bytes for {shape:?}");
        let element = |i: usize| {
            let mut bits = [0; 4];
            bits[..size].copy_from_slice(&bytes[i * size..(i + 1) * size]);
            bits
        };
        self.place(what, shape, dtype, gaps, pattern, element)
    }

    /// An output, unwritten.
    pub(crate) fn output(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        gaps: Gaps,
    ) -> Probe<D> {
        self.place(what, shape.into(), dtype, gaps, pattern, |_| unwritten(dtype))
    }

    /// A tensor that is read and written.
    pub(crate) fn in_out(
        &mut self,
        what: &'static str,
        shape: impl Into<Shape>,
        dtype: DType,
        gaps: Gaps,
        values: &[f32],
    ) -> Probe<D> {
        let shape = shape.into();
        assert_eq!(values.len(), shape.elements(), "{what}: values for {shape:?}");
        self.place(what, shape, dtype, gaps, pattern, |i| encode(values[i], dtype))
    }

    /// A weight matrix, and its elements as the device sees them.
    pub(crate) fn weight(
        &mut self,
        n: usize,
        k: usize,
        format: WeightFormat,
        rng: &mut Rng,
    ) -> (Weight<D>, Vec<f64>) {
        self.weights(1, n, k, format, rng)
    }

    /// Equal weight matrices, and their elements as the device sees them.
    pub(crate) fn weights(
        &mut self,
        count: usize,
        n: usize,
        k: usize,
        format: WeightFormat,
        rng: &mut Rng,
    ) -> (Weight<D>, Vec<f64>) {
        let values = rng.floats(count * n * k, 1.0);
        let mut coded = match format {
            WeightFormat::Float(dtype) => {
                let bytes =
                    values.iter().flat_map(|v| encode(*v, dtype).into_iter().take(dtype.size()));
                quant::Quantized { bytes: bytes.collect::<Vec<_>>().into(), scales: Vec::new() }
            }
            _ => quant::quantize(format, k, &values).expect("all of them are numbers"),
        };
        if matches!(format, WeightFormat::Int4 { .. }) && (n ^ k).count_ones().is_multiple_of(2) {
            // As if others had quantized them: a device may keep the ends of groups that are bf16, which these are not. All
            // of a shape are alike, as matrices that are copied into each other's places are.
            coded.scales.iter_mut().for_each(|scale| *scale *= 1.03);
        }
        let data = WeightData { count, n, k, format, bytes: &coded.bytes, scales: &coded.scales };
        let weight = self.device.weight(data).expect("a weight in a format the options list");
        (weight, crate::oracle::weight(format, k, &coded.bytes, &coded.scales))
    }

    /// The whole buffer as it is now.
    fn fetch(&mut self, probe: &Probe<D>) -> Vec<u8> {
        let bytes = probe.image.len();
        let host = self.device.host_buffer(bytes).expect("a host buffer");
        let pending = self.device.read_back(&mut self.stream, probe.t.buffer(), 0..bytes, host);
        pending.expect("a read-back").wait().expect("finished work").as_ref()[..bytes].to_vec()
    }

    /// The elements as they are now, guards checked.
    pub(crate) fn read(&mut self, label: &Label, probe: &Probe<D>) -> Vec<u8> {
        let now = self.fetch(probe);
        let size = probe.t.dtype().size();
        let mut expected = probe.image.clone();
        let mut elements = Vec::with_capacity(probe.t.shape().elements() * size);
        for at in probe.elements() {
            elements.extend(&now[at..at + size]);
            expected[at..at + size].copy_from_slice(&now[at..at + size]);
        }
        if let Some(at) = (0..now.len()).find(|&i| now[i] != expected[i]) {
            let from_start = at as i64 - probe.t.offset() as i64;
            panic!(
                "{label}: a guard of {} ({:?} {}, row stride {}) was overwritten {from_start} bytes \
                 from its first element: got {:#04x}, want {:#04x}",
                probe.what,
                probe.t.shape(),
                probe.t.dtype(),
                probe.t.row_stride(),
                now[at],
                expected[at],
            );
        }
        elements
    }

    /// The elements of an i32 tensor as they are now, guards checked.
    pub(crate) fn read_i32(&mut self, label: &Label, probe: &Probe<D>) -> Vec<i32> {
        let bytes = self.read(label, probe);
        bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    /// The elements of a float tensor as they are now, guards checked.
    pub(crate) fn read_floats(&mut self, label: &Label, probe: &Probe<D>) -> Vec<f32> {
        let bytes = self.read(label, probe);
        let dtype = probe.t.dtype();
        bytes.chunks_exact(dtype.size()).map(|b| decode(b, dtype)).collect()
    }

    /// Asserts that nobody wrote to these.
    pub(crate) fn unchanged(&mut self, label: &Label, probes: &[&Probe<D>]) {
        for probe in probes {
            let now = self.fetch(probe);
            if let Some(at) = (0..now.len()).find(|&i| now[i] != probe.image[i]) {
                let from_start = at as i64 - probe.t.offset() as i64;
                panic!(
                    "{label}: the input {} was overwritten {from_start} bytes from its first \
                     element: got {:#04x}, want {:#04x}",
                    probe.what, now[at], probe.image[at],
                );
            }
        }
    }

    /// Asserts that every element is what `want(row, col)` says, and that the guards are whole.
    pub(crate) fn check(
        &mut self,
        label: &Label,
        probe: &Probe<D>,
        want: impl Fn(usize, usize) -> Want,
    ) {
        let (dtype, cols) = (probe.t.dtype(), probe.t.cols());
        let now = self.read(label, probe);
        let mut first = None;
        let mut num_wrong = 0usize;
        for (i, (bits, at)) in now.chunks_exact(dtype.size()).zip(probe.elements()).enumerate() {
            let (row, col) = (i / cols, i % cols);
            let old = &probe.image[at..at + dtype.size()];
            if let Err(why) = self.compare(bits, old, dtype, want(row, col)) {
                num_wrong += 1;
                first.get_or_insert_with(|| {
                    format!("{}[{row}, {col}] ({dtype}): {why}", probe.what)
                });
            }
        }
        if let Some(first) = first {
            let total = probe.t.shape().elements();
            panic!(
                "{label} on {}: {num_wrong} of {total} elements wrong, first {first}",
                self.device.name()
            );
        }
    }

    fn compare(&self, bits: &[u8], old: &[u8], dtype: DType, want: Want) -> Result<(), String> {
        let got = decode(bits, dtype);
        let is_unwritten = *bits == unwritten(dtype)[..bits.len()];
        let note = if is_unwritten { " (never written)" } else { "" };
        match want {
            Want::Stays if bits == old => Ok(()),
            Want::Stays => {
                Err(format!("got {got}, want it left as it was, {}", decode(old, dtype)))
            }
            Want::Exact(value) => {
                let expected = encode(value, dtype);
                let both_nan = value.is_nan() && got.is_nan() && !is_unwritten;
                if *bits == expected[..bits.len()] || both_nan {
                    return Ok(());
                }
                Err(format!("got {got}{note}, want exactly {}", decode(&expected, dtype)))
            }
            Want::Near(v) => {
                let tolerance = v.tolerance(dtype, self.options);
                if (f64::from(got) - v.value).abs() <= tolerance {
                    return Ok(());
                }
                Err(format!("got {got}{note}, want {} within {tolerance:.3e}", v.value))
            }
            Want::Any => Ok(()),
            Want::Finite if got.is_finite() => Ok(()),
            Want::Finite => Err(format!("got {got}{note}, want a finite number")),
        }
    }
}

/// Position-dependent and no float anyone would compute.
fn pattern(i: usize) -> u8 {
    (i as u8).wrapping_mul(37).wrapping_add(11)
}

/// Says on standard error that something checked nothing, so that a log does not pass for a proof. Not
/// by `eprintln!`, which the test harness keeps to itself when a test passes.
pub(crate) fn skip(what: &str, device: &str, why: &str) {
    let line = format!("SKIPPED {what} on {device}: {why}\n");
    // A closed standard error is no reason to fail a test.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
