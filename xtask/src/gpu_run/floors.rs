//! The least time a phase can take: the work it must do, over what the machine was measured to do.
//!
//! Operations and bytes are those of the real models: 411 million parameters of vision at 729 patches a
//! crop, 24 text layers of 2048, keys and values of 16 bits.
use serde_json::Value;

/// Operations of a crop through the vision tower: 0.600 T of products, 0.066 T of attention.
const CROP_FLOPS: f64 = 0.666e12;
/// Of the projection of a picture.
const PROJECT_FLOPS: f64 = 0.052e12;
/// Of attention over a prompt, per token of it, at some 750 tokens.
const ATTENTION_FLOPS: f64 = 0.143e9;
/// Keys and values of a token.
const KV_BYTES: f64 = 196_608.0;

/// What a machine was measured to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    pub(super) bytes_per_s: f64,
    /// Not a number where there is no cuBLASLt; what follows from it is none, either.
    pub(super) flops: f64,
}

impl Ceilings {
    pub(super) fn of(data: &Value) -> Option<Self> {
        let bytes_per_s = data["copy_bytes_per_s"].as_f64()?;
        Some(Ceilings { bytes_per_s, flops: data["gemm_flops"].as_f64().unwrap_or(f64::NAN) })
    }
}

/// A model's text tower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Moondream2,
    /// With experts of 8 bits.
    Moondream3,
}

impl Text {
    pub(super) fn of(model: &str) -> Self {
        if model.contains("moondream3") { Text::Moondream3 } else { Text::Moondream2 }
    }

    fn flops_per_token(self) -> f64 {
        match self {
            Text::Moondream2 => 2.416e9,
            Text::Moondream3 => 3.11e9,
        }
    }

    /// Bytes of the weights that a step of so many tokens reads.
    fn weight_bytes(self, tokens: f64) -> f64 {
        match self {
            Text::Moondream2 => 2.626e9,
            Text::Moondream3 => {
                // 20 layers of 64 experts, of which each token goes to 8, chosen as if by chance.
                let distinct = 64.0 * (1.0 - (1.0f64 - 8.0 / 64.0).powf(tokens));
                1.30e9 + 20.0 * distinct * 6.29e6
            }
        }
    }

    pub(super) fn vision_s(self, crops: f64, can: Ceilings) -> f64 {
        (crops * CROP_FLOPS + PROJECT_FLOPS) / can.flops
    }

    pub(super) fn prefill_s(self, tokens: f64, can: Ceilings) -> f64 {
        let computed = tokens * (self.flops_per_token() + ATTENTION_FLOPS) / can.flops;
        let read = self.weight_bytes(tokens) / can.bytes_per_s;
        // No number if one of them is none, which `max` would pass over.
        if computed < read { read } else { computed }
    }

    pub(super) fn decode_s(self, batch: f64, context: f64, can: Ceilings) -> f64 {
        (self.weight_bytes(batch) + batch * context * KV_BYTES) / can.bytes_per_s
    }

    /// Requests per second of the workload: three of five pictures are new, of 7.8 crops on average; the
    /// others are asked a second time.
    pub(super) fn requests_per_s(self, batch: f64, steps: f64, can: Ceilings) -> f64 {
        let miss = self.vision_s(7.8, can) + self.prefill_s(769.0, can);
        let hit = self.prefill_s(39.0, can);
        1.0 / (0.604 * miss + 0.396 * hit + steps * self.decode_s(batch, 770.0, can) / batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An H200, as measured once.
    const H200: Ceilings = Ceilings { bytes_per_s: 4.3e12, flops: 790e12 };

    #[track_caller]
    fn close(got: f64, want: f64) {
        assert!((got / want - 1.0).abs() < 0.12, "got {got}, want about {want}");
    }

    #[test]
    fn floors_are_those_of_the_models() {
        let (two, three) = (Text::Moondream2, Text::Moondream3);
        close(two.vision_s(8.0, H200), 7.02e-3);
        close(two.prefill_s(769.0, H200), 2.55e-3);
        close(two.decode_s(1.0, 770.0, H200), 0.65e-3);
        close(two.decode_s(64.0, 770.0, H200), 2.86e-3);
        close(three.decode_s(1.0, 770.0, H200), 0.57e-3);
        close(three.decode_s(4.0, 770.0, H200), 1.22e-3);
        close(three.decode_s(64.0, 770.0, H200), 4.43e-3);
        close(two.requests_per_s(64.0, 2.3, H200), 167.0);
        close(two.requests_per_s(1.0, 29.0, H200), 40.0);
    }
}
