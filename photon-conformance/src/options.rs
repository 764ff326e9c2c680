//! What a backend promises, so that the suite can ask for that and no more.
use photon_core::{DType, WeightFormat};

/// What the suite may ask of a device. [`Options::FULL`] is the whole contract; anything less is a
/// backend in the making, and its list says what is missing.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Float types of activations; never empty.
    pub floats: &'static [DType],
    /// Types of paged caches; never empty.
    pub caches: &'static [DType],
    /// Formats of weight matrices; never empty.
    pub weights: &'static [WeightFormat],
    /// Relative error of each product beyond that of f32, for matrix units that round their inputs:
    /// 2^-11 for TF32. Zero where all arithmetic is f32.
    pub product_error: f64,
    /// Whether rows may be rounded to 8 bits, `scale q` with `q` from -127 to 127, before they are multiplied with
    /// [`WeightFormat::Int8`] or [`WeightFormat::Int4`]: 512 elements, or those of a group, share a scale.
    pub rounded_rows: bool,
    /// Whether an attention of 16-bit queries rounds what each value's share is to their type, as matrix
    /// units want it.
    pub rounded_shares: bool,
    /// Whether a paged attention of bf16 queries over a cache of int8 rounds a query to integers of 15 bits, a scale for
    /// a head, and shares likewise, times the scales of their values, for positions that follow each other.
    pub integer_attention: bool,
    /// Whether a row of a linear layer, a layer norm or a paged attention has the same bits whatever
    /// else is in the batch. If not, those cases say that they were skipped.
    pub batch_invariant: bool,
    /// Whether a token of a paged attention has the same bits however its row is cut into chunks: what
    /// makes a preempted or chunked request answer as if it had not been.
    pub chunk_invariant: bool,
}

/// What an attention may round on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rounding {
    None,
    /// Shares of values.
    Shares(DType),
    /// See [`Options::integer_attention`].
    Integers,
}

const ALL: &[DType] = &[DType::F32, DType::F16, DType::Bf16];

impl Options {
    /// Every type, f32 arithmetic, no promise of invariance.
    pub const FULL: Options = Options {
        floats: ALL,
        caches: &[DType::F32, DType::F16, DType::Bf16, DType::Int8, DType::Fp8],
        weights: &[
            WeightFormat::Float(DType::F32),
            WeightFormat::Float(DType::F16),
            WeightFormat::Float(DType::Bf16),
            WeightFormat::Int8,
            WeightFormat::Fp8,
            WeightFormat::Int4 { group: 32 },
            WeightFormat::Int4 { group: 128 },
        ],
        product_error: 0.0,
        rounded_rows: false,
        rounded_shares: false,
        integer_attention: false,
        batch_invariant: false,
        chunk_invariant: false,
    };

    /// What an attention of such queries, keys and values may round.
    pub(crate) fn attention_rounding(&self, queries: DType, cache: DType) -> Rounding {
        match (queries, cache) {
            (DType::Bf16, DType::Int8) if self.integer_attention => Rounding::Integers,
            (DType::F16 | DType::Bf16, _) if self.rounded_shares => Rounding::Shares(queries),
            _ => Rounding::None,
        }
    }

    /// One of the float types; different ones as `i` counts up.
    pub(crate) fn float(&self, i: usize) -> DType {
        self.floats[i % self.floats.len()]
    }

    /// One of the weight formats; different ones as `i` counts up.
    pub(crate) fn weight(&self, i: usize) -> WeightFormat {
        self.weights[i % self.weights.len()]
    }

    /// The first float type of weights; there is one.
    pub(crate) fn float_weight(&self) -> DType {
        let float = |format: &WeightFormat| match format {
            WeightFormat::Float(dtype) => Some(*dtype),
            _ => None,
        };
        self.weights.iter().find_map(float).expect("a device multiplies some type of float")
    }

    /// Every ordered pair of float types.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (DType, DType)> + use<> {
        let floats = self.floats;
        floats.iter().flat_map(move |&a| floats.iter().map(move |&b| (a, b)))
    }

    /// Every type of activations with every type of cache.
    pub(crate) fn cache_pairs(&self) -> impl Iterator<Item = (DType, DType)> + use<> {
        let (floats, caches) = (self.floats, self.caches);
        floats.iter().flat_map(move |&a| caches.iter().map(move |&b| (a, b)))
    }
}
