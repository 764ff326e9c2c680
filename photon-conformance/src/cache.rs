//! Paged caches of any type: making one, reading one, and what a stored head must look like.
//!
//! The numbers of 8-bit caches are taken from the formats' definitions here, not from `photon_core::kv`.
use photon_core::{DType, Kernels, kv};

use crate::{
    oracle,
    rig::{Gaps, Label, Probe, Rig, UNWRITTEN_BYTE, Value},
    rng::Rng,
};

/// The geometry of a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cache {
    pub(crate) num_slots: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) dtype: DType,
}

impl Cache {
    fn shape(&self) -> [usize; 2] {
        [self.num_slots, kv::row_len(self.dtype, self.kv_heads, self.head_dim)]
    }

    /// A cache of numbers about 1 in size; slots that nobody may look at hold NaN.
    pub(crate) fn input<D: Kernels>(
        &self,
        rig: &mut Rig<'_, D>,
        what: &'static str,
        rng: &mut Rng,
        is_reached: &[bool],
    ) -> Probe<D> {
        let kv_dim = self.kv_heads * self.head_dim;
        if !kv::is_scaled(self.dtype) {
            let mut values = rng.floats(self.num_slots * kv_dim, 1.0);
            for (row, _) in values.chunks_exact_mut(kv_dim).zip(is_reached).filter(|(_, r)| !**r) {
                row.fill(f32::NAN);
            }
            return rig.input(what, self.shape(), self.dtype, &values);
        }
        let mut bytes = Vec::new();
        for is_reached in is_reached {
            bytes.extend((0..kv_dim).map(|_| match rng.below(256) as u8 {
                // Codes that are never stored: NaN, and int8's -128.
                0x7f | 0xff if self.dtype == DType::Fp8 => 0x11,
                0x80 if self.dtype == DType::Int8 => 0x11,
                code => code,
            }));
            for scale in rng.floats(self.kv_heads, 0.01) {
                let scale = if *is_reached { scale.abs() + 0.002 } else { f32::NAN };
                bytes.extend(scale.to_le_bytes());
            }
        }
        rig.raw(what, self.shape(), self.dtype, Gaps::NONE, &bytes)
    }

    /// A cache that nothing was written to.
    pub(crate) fn output<D: Kernels>(&self, rig: &mut Rig<'_, D>, what: &'static str) -> Probe<D> {
        rig.output(what, self.shape(), self.dtype, Gaps::NONE)
    }

    /// The numbers that an input stands for, `[num_slots, kv_heads * head_dim]`.
    pub(crate) fn values<D: Kernels>(&self, probe: &Probe<D>) -> Vec<f64> {
        if !kv::is_scaled(self.dtype) {
            return probe.values();
        }
        let rows = probe.bytes();
        let row_len = self.shape()[1];
        rows.chunks_exact(row_len).flat_map(|row| self.heads(row).flat_map(Head::values)).collect()
    }

    /// The heads of a row of an 8-bit cache.
    fn heads<'a>(&self, row: &'a [u8]) -> impl Iterator<Item = Head<'a>> + use<'a> {
        let (dtype, head_dim) = (self.dtype, self.head_dim);
        let (codes, scales) = row.split_at(self.kv_heads * head_dim);
        let heads = codes.chunks_exact(head_dim).zip(scales.chunks_exact(kv::SCALE_BYTES));
        heads.map(move |(codes, scale)| Head {
            codes,
            scale: f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]),
            dtype,
        })
    }

    /// Asserts that each slot of an 8-bit cache holds `want(slot)`, or what it held if that is none.
    pub(crate) fn check<D: Kernels>(
        &self,
        rig: &mut Rig<'_, D>,
        label: &Label,
        probe: &Probe<D>,
        want: impl Fn(usize) -> Option<Vec<Value>>,
    ) {
        let now = rig.read(label, probe);
        for (slot, row) in now.chunks_exact(self.shape()[1]).enumerate() {
            let Some(want) = want(slot) else {
                assert!(
                    row.iter().all(|b| *b == UNWRITTEN_BYTE),
                    "{label}: slot {slot} was written"
                );
                continue;
            };
            let wanted = want.chunks_exact(self.head_dim);
            for (i, (head, want)) in self.heads(row).zip(wanted).enumerate() {
                if let Err(why) = head.compare(want, rig) {
                    panic!(
                        "{label} on {}: {:?}, slot {slot}, head {i}: {why}",
                        rig.device.name(),
                        self.dtype
                    );
                }
            }
        }
    }
}

/// A stored head.
struct Head<'a> {
    codes: &'a [u8],
    scale: f32,
    dtype: DType,
}

impl Head<'_> {
    fn values(self) -> impl Iterator<Item = f64> {
        let Head { codes, scale, dtype } = self;
        codes.iter().map(move |&code| oracle::code(code, dtype) * f64::from(scale))
    }

    /// The scale comes from the largest element, and every code is the nearest.
    fn compare<D: Kernels>(self, want: &[Value], rig: &Rig<'_, D>) -> Result<(), String> {
        let scale = f64::from(self.scale);
        let largest = if self.dtype == DType::Fp8 { 448.0 } else { 127.0 };
        let is_finite = want.iter().all(|v| v.value.is_finite());
        let top = want.iter().map(|v| v.value.abs()).fold(0.0, f64::max);
        let noise = |v: &Value| v.tolerance(DType::F32, rig.options);
        let slack = want.iter().map(noise).fold(0.0, f64::max);
        let scale_wanted = (top / largest).max(f64::from(f32::MIN_POSITIVE));
        let dtype = self.dtype;
        for (j, (got, v)) in self.values().zip(want).enumerate() {
            if !is_finite {
                if got.is_finite() {
                    return Err(format!("element {j} is {got} in a head that is not finite"));
                }
                continue;
            }
            let half = scale * oracle::half_step(v.value.abs() / scale, dtype) * (1.0 + 1e-5);
            if !is_within(got, v.value, half + noise(v)) {
                return Err(format!("element {j} is {got}, want {} within {half}", v.value));
            }
        }
        let tolerance = scale_wanted * 1e-6 + slack / largest;
        if is_finite && !is_within(scale, scale_wanted, tolerance) {
            return Err(format!("the scale is {scale}, want {scale_wanted}"));
        }
        Ok(())
    }
}

/// False for NaN.
fn is_within(got: f64, want: f64, tolerance: f64) -> bool {
    (got - want).abs() <= tolerance
}
